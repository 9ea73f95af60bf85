"""How a client's retry is known: by the key it names, or by what it asks again.

A client that lost its connection asks once more, at any router. With an `Idempotency-Key` both asks
name one generation. Without, one that says of itself that it is a retry (a count above 0 in the
header that the SDKs made by Stainless send, OpenAI's among them) may go on with what an equal ask
of the same tenant began, while nobody reads that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

from services.common.errors import InvalidArgument
from services.router.ask import Ask

KEY_HEADER = "idempotency-key"
RETRY_HEADER = "x-stainless-retry-count"
MAX_KEY_CHARS = 255
_DIGEST_CHARS = 32


def recognisable(
    ask: Ask, path: str, header: Callable[[str], str], body: bytes, place: int = 0
) -> Ask:
    """The ask with what names it to its retries; `header` gives '' for one that is absent, `place`
    is the prompt's own among those of the body.

    Where nobody is asked for a key, whoever sends one Authorization header is taken for one tenant.
    Raises InvalidArgument for a key that is too long.
    """
    tenant, key = ask.tenant.mark or header("authorization"), header(KEY_HEADER)
    if len(key) > MAX_KEY_CHARS:
        raise InvalidArgument(
            f"an Idempotency-Key has at most {MAX_KEY_CHARS} characters", field=KEY_HEADER
        )
    among = (str(place).encode(),) if place else ()
    if key:
        return replace(ask, generation_id="k" + _digest(tenant.encode(), key.encode(), *among))
    digest = _digest(tenant.encode(), path.encode(), body, *among)
    return replace(ask, digest=digest, is_retry=_count(header(RETRY_HEADER)) > 0)


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:_DIGEST_CHARS]


def _count(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0
