"""The token that the services of a mesh without certificates share, and what is derived from it.

Who has the mesh's token is one of its services, or an operator. A node's token is derived from it,
names its node, and holds two secrets (docs/adr/0018):

    shunt-node.NODE.OWN.ENGINES    OWN = HMAC(mesh's token, "node:" NODE), for this node alone
                                   ENGINES = HMAC(mesh's token, "engines"), the same for all

NODE and OWN are shown to the other services and admit to what an engine of that node may call.
ENGINES is shown to engines, by everybody: an engine can check no secret that it does not hold, and
must not hold the mesh's.

`python -m services.common.mesh_token FILE` draws a mesh's token into a file that is not there yet.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from services.common import roles
from services.common.errors import InvalidArgument, PermissionDenied, Unauthenticated

VARIABLE = "SHUNT_MESH_TOKEN"
FILE_VARIABLE = "SHUNT_MESH_TOKEN_FILE"
_HEADER, _SCHEME = "authorization", "Bearer "
_FORM = re.compile(r"[!-~]{16,4096}")
_ENGINES = "/shuntserve.engine.v1.EngineService/"
_NODE_PREFIX = "shunt-node."
_SECRET = re.compile(r"[0-9a-f]{64}")
_DRAWN_BYTES = 32
_CALLS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
Channel = TypeVar("Channel")


def own() -> str:
    """This process's token, from its environment or the file named there; empty: it has none.

    Raises InvalidArgument, whose field is the variable, for a file that cannot be read, a token
    that is short or holds anything but visible ASCII, and a node's token that is not whole.
    """
    token, path = os.environ.get(VARIABLE, ""), os.environ.get(FILE_VARIABLE, "")
    name = VARIABLE if token else FILE_VARIABLE
    if not token and path:
        try:
            token = Path(path).read_text("ascii", "replace").strip()
        except OSError as error:
            raise InvalidArgument(f"{path}: {error.strerror}", field=name) from error
        if not token:
            raise InvalidArgument(f"{path} is empty", field=name)
    if token and not _FORM.fullmatch(token):
        raise InvalidArgument("a token has at least 16 characters, all of them visible", field=name)
    if token.startswith(_NODE_PREFIX) and not _parts_of(token):
        raise InvalidArgument(
            f"a node's token reads {_NODE_PREFIX}NODE, and two secrets of 64 digits", field=name
        )
    return token


def of_node(token: str, node_id: str) -> str:
    """The token of a node, from the mesh's or from the node's own. Raises InvalidArgument for an
    empty id and PermissionDenied where `token` is another node's."""
    if not node_id:
        raise InvalidArgument("a node has a name", field="node_id")
    mine = node_of(token)
    if mine == node_id:
        return token
    if mine:
        raise PermissionDenied(f"the token is node {mine}'s alone", field="node_id")
    return ".".join((_name_of(token, node_id), _engines_secret(token)))


def node_of(token: str) -> str:
    """The node that a token is of; empty for the mesh's."""
    parts = _parts_of(token)
    return parts[0] if parts else ""


def narrowed(node_id: str) -> dict[str, str]:
    """The variables with which an engine holds its node's token in place of this process's own;
    none where this process has none."""
    token = own()
    if not token:
        return {}
    return {VARIABLE: of_node(token, node_id), FILE_VARIABLE: ""}


def _name_of(token: str, node_id: str) -> str:
    """What a node shows to services that hold the mesh's token."""
    return f"{_NODE_PREFIX}{quote(node_id, safe='')}.{_derived(token, f'node:{node_id}')}"


def _derived(token: str, purpose: str) -> str:
    return hmac.digest(token.encode(), purpose.encode(), "sha256").hex()


def _engines_secret(token: str) -> str:
    parts = _parts_of(token)
    return parts[2] if parts else _derived(token, "engines")


def _parts_of(token: str) -> tuple[str, str, str] | None:
    """Node and both secrets of a node's token; None for any other."""
    if not token.startswith(_NODE_PREFIX):
        return None
    name, _, engines = token.removeprefix(_NODE_PREFIX).rpartition(".")
    node_id, _, mine = name.rpartition(".")
    if not node_id or not _SECRET.fullmatch(mine) or not _SECRET.fullmatch(engines):
        return None
    return unquote(node_id), mine, engines


def _shown_to(token: str, method: str) -> str:
    if method.startswith(_ENGINES):
        return _engines_secret(token)
    return token.rpartition(".")[0] if node_of(token) else token


def present(channel: Channel) -> Channel:
    """Has calls into the mesh show this process's token, or what of it the called one may see, if
    it has one; routers never see it."""
    token = own()
    if token:
        for kind in _CALLS:
            setattr(channel, kind, _showing(token, getattr(channel, kind)))
    return channel


def _showing(token: str, make: Callable[..., Any]) -> Callable[..., Any]:
    def made(method: str, *arguments: Any, **options: Any) -> Any:
        call = make(method, *arguments, **options)
        if method.startswith("/grpc.") or roles.is_for_clients(method):
            return call
        shown = (_HEADER, _SCHEME + _shown_to(token, method))

        def invoke(*request: Any, metadata: Iterable[Any] | None = None, **more: Any) -> Any:
            return call(*request, metadata=(*(metadata or ()), shown), **more)

        return invoke

    return made


def caller_of(
    token: str, method: str, metadata: Iterable[tuple[str, str | bytes]] | None
) -> roles.Identity | None:
    """Which node's engine calls; None for who may call everything here. Raises Unauthenticated."""
    value = next((value for key, value in metadata or () if key == _HEADER), "")
    text = value if isinstance(value, str) else value.decode("ascii", "replace")
    scheme, shown = text[: len(_SCHEME)], text[len(_SCHEME) :]
    if scheme == _SCHEME:
        if _equal(shown, _shown_to(token, method)):
            return None
        node_id = unquote(shown.removeprefix(_NODE_PREFIX).rpartition(".")[0])
        knows_all = not node_of(token) and not method.startswith(_ENGINES)
        if knows_all and node_id and _equal(shown, _name_of(token, node_id)):
            return roles.Identity(roles.Role.ENGINE, node_id)
    raise Unauthenticated(
        f"this mesh is for those who have its token: {VARIABLE} or {FILE_VARIABLE}"
    )


def _equal(shown: str, right: str) -> bool:
    return hmac.compare_digest(shown.encode(), right.encode())


def main() -> None:
    path = Path(sys.argv[1])
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(file, "w", encoding="ascii") as drawn:
        drawn.write(f"{secrets.token_urlsafe(_DRAWN_BYTES)}\n")


if __name__ == "__main__":
    main()
