"""One question to a cloud's metadata service: answered in bounded time and size, or an error.

Such a service hangs for containers when its answers may take one hop only, and its link-local
address is one that anything may answer at: nothing it says is believed unread.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import urlsplit

from services.common.errors import Unavailable

MAX_BYTES = 64 << 10
"""Of an answer; none is longer."""
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes

    @property
    def text(self) -> str:
        """Raises Unavailable for what is none."""
        try:
            return self.body.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise Unavailable("the metadata service answers with no text") from error


class MetadataService:
    """A metadata service at `url`. No answer takes longer than `timeout_s`, connecting included."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._secure = parts.scheme == "https"
        self._prefix = parts.path.rstrip("/")
        self._timeout_s = timeout_s

    async def ask(
        self,
        path: str,
        headers: Mapping[str, str] = _NONE,
        *,
        method: str = "GET",
        patience_s: float = 0.0,
    ) -> Reply:
        """Redirects and proxies are not followed. `patience_s` longer than usual where the service
        was asked to wait. Raises Unavailable."""
        limit_s = self._timeout_s + patience_s
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        line = kind(self._host, self._port, timeout=limit_s)
        asking = asyncio.create_task(asyncio.to_thread(_ask, line, method, path, headers))
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.shield(asking)
        except TimeoutError:
            raise Unavailable(f"no answer within {limit_s:g} s") from None
        finally:
            await _broken_off(line, asking)

    def path(self, path: str) -> str:
        """Below what the URL names."""
        return self._prefix + path


def _ask(
    line: http.client.HTTPConnection, method: str, path: str, headers: Mapping[str, str]
) -> Reply:
    try:
        line.request(method, path, headers={"Connection": "close", **headers})
        answer = line.getresponse()
        body = answer.read(MAX_BYTES + 1)
        said = {name.lower(): value for name, value in answer.getheaders()}
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable(f"no answer: {error or type(error).__name__}") from error
    finally:
        line.close()
    if len(body) > MAX_BYTES:
        raise Unavailable(f"an answer has at most {MAX_BYTES} bytes")
    return Reply(answer.status, said, body)


async def _broken_off(line: http.client.HTTPConnection, asking: asyncio.Task[Reply]) -> None:
    """A thread cannot be cancelled: it ends when its line does."""
    while not asking.done():
        open_socket = line.sock
        if open_socket is not None:
            with suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
        await asyncio.wait((asking,), timeout=0.05)
    if not asking.cancelled():
        asking.exception()  # it was told already, or nobody waits for it any more
