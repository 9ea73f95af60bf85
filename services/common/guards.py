"""Who comes in: by the role of a certificate, or by the token that a mesh shares."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import grpc
from cryptography import x509

from services.common import mesh_token, roles
from services.common.errors import Unauthenticated
from services.common.settings import ServiceSettings

Handler = Any
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]
Context = grpc.aio.ServicerContext[Any, Any]
_KINDS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}
_speaks_for: ContextVar[str] = ContextVar("speaks_for", default="")


def guards_of(settings: ServiceSettings) -> list[grpc.aio.ServerInterceptor]:
    """What stands within the interceptor of errors."""
    if settings.tls.enabled:
        return [RoleInterceptor()]
    token = mesh_token.own()
    return [TokenInterceptor(token)] if token else []


class RoleInterceptor(grpc.aio.ServerInterceptor):
    """Lets a caller call what its certificate's role may call, for as long as it is valid: a
    connection may stand for longer."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler, method = await continuation(handler_call_details), handler_call_details.method
        if handler is None or method.startswith("/grpc."):
            return handler

        def let_in(request: Any, context: Context) -> Any:
            return _admitted(_caller(context), method, handler, request)

        return guarded(handler, let_in)


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Lets in who shows the mesh's token, and engines of nodes that show theirs to what the role
    may call; what clients may call is open to everybody."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler, method = await continuation(handler_call_details), handler_call_details.method
        if handler is None or method.startswith("/grpc.") or roles.is_for_clients(method):
            return handler

        def let_in(request: Any, context: Context) -> Any:
            caller = mesh_token.caller_of(self._token, method, context.invocation_metadata())
            return request if caller is None else _admitted(caller, method, handler, request)

        return guarded(handler, let_in)


def speaks_for() -> str:
    """The only node that the caller of the RPC which this task serves may speak for; empty: it may
    for any."""
    return _speaks_for.get()


def _admitted(caller: roles.Identity, method: str, handler: Handler, request: Any) -> Any:
    """The request, of a caller who may make it. Raises PermissionDenied."""
    roles.check_call(caller, method)
    _speaks_for.set(caller.node_id)
    if method in roles.SPEAKS_FOR_A_NODE:
        if handler.request_streaming:
            return _of_one_node(caller, request)
        roles.check_node(caller, request)
    return request


def guarded(handler: Handler, let_in: Callable[[Any, Context], Any]) -> Handler:
    """The handler, called with what `let_in` makes of its request."""
    kind = _KINDS[bool(handler.request_streaming), bool(handler.response_streaming)]
    inner = getattr(handler, kind)

    def call(request: Any, context: Context) -> Any:
        _speaks_for.set("")
        return inner(let_in(request, context), context)

    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(call, handler.request_deserializer, handler.response_serializer)


def _caller(context: Context) -> roles.Identity:
    """Raises Unauthenticated and PermissionDenied."""
    shown = context.auth_context()
    ends = min((end_of(pem) for pem in shown.get("x509_pem_cert", ())), default=None)
    if ends is None or ends <= datetime.datetime.now(datetime.UTC):
        raise Unauthenticated(f"the caller's certificate ended at {ends}")
    named = shown.get("peer_spiffe_id", ())
    return roles.identity_of(value.decode("utf-8", "replace") for value in named)


@lru_cache(maxsize=4096)
def end_of(pem: bytes) -> datetime.datetime:
    """When a certificate ends."""
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc


async def _of_one_node(caller: roles.Identity, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        roles.check_node(caller, request)
        yield request
