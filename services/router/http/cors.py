"""Which pages of other origins a browser lets read the answers (Fetch standard, section 3.2).

No answer carries credentials of the browser's, so `*` gives a page nothing that a program on the
same machine has not; a list of origins keeps other pages out.
"""

from __future__ import annotations

from collections.abc import Mapping

Headers = list[tuple[bytes, bytes]]

METHODS = b"GET, HEAD, POST, DELETE, OPTIONS"
EXPOSED = (
    b"x-generation-id, x-numerics-classes, x-request-id, retry-after, retry-after-ms, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
PREFLIGHT_AGE_S = b"86400"
_VARY = (b"vary", b"origin")


class Cors:
    """The policy of one router."""

    def __init__(self, origins: str) -> None:
        """`origins` as the setting has them: `*`, or some, between commas, or none."""
        self._origins = {origin.strip().rstrip("/").lower() for origin in origins.split(",")} - {""}

    def headers(self, request: Mapping[str, str]) -> Headers:
        """What every answer carries."""
        if "*" in self._origins:
            allowed: Headers = [(b"access-control-allow-origin", b"*")]
        elif not self._origins:
            return []
        elif (origin := request.get("origin", "")).lower() in self._origins:
            allowed = [(b"access-control-allow-origin", origin.encode("latin-1")), _VARY]
        else:
            return [_VARY]
        return [*allowed, (b"access-control-expose-headers", EXPOSED)]

    def preflight(self, request: Mapping[str, str]) -> Headers:
        """What a browser asks for before a page may send what a form could not, beside `headers`;
        empty when nobody asks, or when the page may not."""
        asked = "origin" in request and "access-control-request-method" in request
        headers = self.headers(request)
        if not asked or not headers or headers == [_VARY]:
            return []
        wanted = request.get("access-control-request-headers", "")
        return [
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", wanted.encode("latin-1") or b"*"),
            (b"access-control-max-age", PREFLIGHT_AGE_S),
        ]
