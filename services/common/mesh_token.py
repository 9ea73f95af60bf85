"""The token that the services of a mesh without certificates share: who has it is one of them.

`python -m services.common.mesh_token FILE` draws one into a file that is not there yet.
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

from services.common import roles
from services.common.errors import InvalidArgument, Unauthenticated

VARIABLE = "SHUNT_MESH_TOKEN"
FILE_VARIABLE = "SHUNT_MESH_TOKEN_FILE"
_HEADER, _SCHEME = "authorization", "Bearer "
_FORM = re.compile(r"[!-~]{16,4096}")
_DRAWN_BYTES = 32
_CALLS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
Channel = TypeVar("Channel")


def own() -> str:
    """This process's token, from its environment or the file named there; empty: it has none.

    Raises InvalidArgument, whose field is the variable, for a file that cannot be read and a token
    that is short or holds anything but visible ASCII.
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
    return token


def present(channel: Channel) -> Channel:
    """Has calls into the mesh show this process's token, if it has one; routers never see it."""
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

        def invoke(*request: Any, metadata: Iterable[Any] | None = None, **more: Any) -> Any:
            shown = (*(metadata or ()), (_HEADER, _SCHEME + token))
            return call(*request, metadata=shown, **more)

        return invoke

    return made


def check(token: str, metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
    """Raises Unauthenticated where a call does not show the token."""
    shown = next((value for key, value in metadata or () if key == _HEADER), "")
    found = shown.encode() if isinstance(shown, str) else shown
    if not hmac.compare_digest(found, (_SCHEME + token).encode()):
        raise Unauthenticated(
            f"this mesh is for those who have its token: {VARIABLE} or {FILE_VARIABLE}"
        )


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
