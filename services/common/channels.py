"""Both ends of every gRPC connection: one set of options, deadlines handed on, optional mTLS."""

from __future__ import annotations

import contextvars
import time

import grpc

from services.common import mesh_token
from services.common.channel_options import MAX_MESSAGE_BYTES
from services.common.channel_options import options as options
from services.common.errors import DeadlineExceeded
from services.common.renewal import RenewedChannel
from services.common.settings import TlsSettings

_deadline: contextvars.ContextVar[float | None] = contextvars.ContextVar("deadline", default=None)


def address_of(host: str, port: int) -> str:
    """host:port as addresses are written; an IPv6 host stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def open_channel(
    address: str, *, max_message_bytes: int = MAX_MESSAGE_BYTES, tls: TlsSettings | None = None
) -> grpc.aio.Channel:
    """A channel to host:port, whose address may change; the caller closes it.

    Without TLS its calls show the mesh's token.
    """
    chosen = options(max_message_bytes)
    if tls is not None and tls.enabled:
        credentials = grpc.ssl_channel_credentials(*_files(tls))
        return RenewedChannel(lambda: grpc.aio.secure_channel(address, credentials, chosen))
    return mesh_token.present(RenewedChannel(lambda: grpc.aio.insecure_channel(address, chosen)))


def bind(server: grpc.aio.Server, address: str, tls: TlsSettings | None) -> int:
    """Binds the server to host:port and returns the port; raises RuntimeError when it is taken."""
    if tls is not None and tls.enabled:
        authority, key, certificate = _files(tls)
        credentials = grpc.ssl_server_credentials(
            [(key, certificate)], root_certificates=authority, require_client_auth=True
        )
        return server.add_secure_port(address, credentials)
    return server.add_insecure_port(address)


def _files(tls: TlsSettings) -> tuple[bytes, bytes, bytes]:
    if tls.authority is None or tls.key is None or tls.certificate is None:
        raise ValueError("TLS needs certificate, key and authority together")
    return tls.authority.read_bytes(), tls.key.read_bytes(), tls.certificate.read_bytes()


def hand_on_deadline(remaining_s: float | None) -> None:
    """Remembers the deadline of the RPC this task serves, for the calls it makes."""
    _deadline.set(None if remaining_s is None else time.monotonic() + remaining_s)


def timeout(limit_s: float) -> float:
    """Seconds a call may take: its own limit, or what is left of the caller's deadline if less."""
    deadline = _deadline.get()
    if deadline is None:
        return limit_s
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise DeadlineExceeded("the caller's deadline has passed")
    return min(limit_s, remaining_s)
