"""What of a response no other part of its request holds: as JSON, it travels with the request."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from services.common.errors import InvalidArgument
from services.common.generation import GenerationRequest, ResponseTerms
from services.common.wire import MAX_DETAILS_BYTES
from services.router.openai.responses.items import Item, named

PREFIX = "resp_"
"""Of a response's id; the generation's follows."""


@dataclass(frozen=True, slots=True)
class Details:
    """What is told of a response beside its output."""

    told: dict[str, Any]
    """Parameters, as they are told again, by name."""
    items: list[Item]
    """The whole conversation it answers, without instructions."""


def terms_of(details: Details, *, store: bool, background: bool) -> ResponseTerms:
    """Raises InvalidArgument where there is too much to carry along."""
    text = json.dumps(
        {"told": details.told, "items": details.items}, ensure_ascii=False, separators=(",", ":")
    )
    size_bytes = len(text.encode())
    if size_bytes > MAX_DETAILS_BYTES:
        raise InvalidArgument(
            f"input, with what it goes on from, has {size_bytes} bytes, at most"
            f" {MAX_DETAILS_BYTES}",
            field="input",
        )
    return ResponseTerms(store, background, text)


def details_of(request: GenerationRequest) -> Details:
    """Of a request that was asked for as a response; its items have ids."""
    terms = request.response
    assert terms is not None
    found = json.loads(terms.details)
    return Details(found["told"], named(found["items"], request.generation_id))
