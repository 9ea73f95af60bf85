"""The status in pages: which nodes, pipelines and generations come next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.common.errors import InvalidArgument

LISTS = ("nodes", "pipelines", "generations")
"""In this order."""
MAX_PAGE_SIZE = 1000
DEFAULT_PAGE_SIZE = 500
MAX_TOKEN_CHARS = 1024


@dataclass(frozen=True, slots=True)
class Page:
    """Ids of what one answer has, by list, and the token of the next; empty in the last one."""

    ids: Mapping[str, Sequence[str]]
    next_token: str


def page(ids: Mapping[str, Iterable[str]], size: int, token: str) -> Page:
    """The page behind the one that gave this token, or the first one. An id that is no more leads
    to where it was. Raises InvalidArgument, naming the field."""
    if size > MAX_PAGE_SIZE:
        raise InvalidArgument(f"page_size is at most {MAX_PAGE_SIZE}", field="page_size")
    room = size or DEFAULT_PAGE_SIZE
    first, behind = _read(token)
    found: dict[str, Sequence[str]] = {}
    last, more = "", False
    for name in LISTS[LISTS.index(first) :]:
        rest = sorted(ids[name], key=_key)
        if name == first and token:
            rest = [one for one in rest if _key(one) > _key(behind)]
        found[name] = rest[:room]
        more = more or len(rest) > room
        room -= len(found[name])
        if found[name]:
            last = f"{name}/{found[name][-1]}"
    return Page({name: found.get(name, ()) for name in LISTS}, last if more else "")


def _key(name: str) -> tuple[int, str]:
    """node-2 comes before node-10."""
    return len(name), name


def _read(token: str) -> tuple[str, str]:
    """The list to go on with, and behind which id."""
    if not token:
        return LISTS[0], ""
    name, slash, behind = token.partition("/")
    if len(token) > MAX_TOKEN_CHARS or not slash or not behind or name not in LISTS:
        raise InvalidArgument("no token that a page of this status gave", field="page_token")
    return name, behind
