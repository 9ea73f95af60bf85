"""Lists as OpenAI's APIs answer them: a page behind an id."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.common.errors import InvalidArgument
from services.router.http.json_body import shown

_NUMBER = re.compile(r"[0-9]{1,6}")


@dataclass(frozen=True, slots=True)
class PageAsk:
    """Which part of a list is wanted."""

    after: str
    limit: int
    oldest_first: bool


def page_of(query: Mapping[str, str], most: int, usual: int) -> PageAsk:
    """Raises InvalidArgument and names the parameter."""
    limit, order = query.get("limit", str(usual)), query.get("order", "desc")
    if not _NUMBER.fullmatch(limit) or not 1 <= int(limit) <= most:
        raise InvalidArgument(f"limit must lie in [1, {most}], not {shown(limit)}", field="limit")
    if order not in ("asc", "desc"):
        raise InvalidArgument(f"order must be asc or desc, not {shown(order)}", field="order")
    return PageAsk(query.get("after", ""), int(limit), order == "asc")


def listing(items: Sequence[Mapping[str, Any]], more: bool) -> bytes:
    """A page, as clients walk from one to the next."""
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return json.dumps(
        {
            "object": "list",
            "data": list(items),
            "first_id": first,
            "last_id": last,
            "has_more": more,
        }
    ).encode()
