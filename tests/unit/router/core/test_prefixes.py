from __future__ import annotations

import pytest

from services.common.exchange import PrefixHolder, PrefixNews, Route
from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.common.prefix import chain_of, told
from services.router.core import prefixes
from services.router.core.prefixes import LEAST_MORE, PrefixIndex, holder_of

REQUEST = GenerationRequest("g", ModelRef("m", "d"), tuple(range(70)), Sampling(1))
NAMES = tuple(map(told, chain_of(REQUEST, 16)))


def index(**held: int) -> PrefixIndex:
    index = PrefixIndex()
    for formation_id, count in held.items():
        index.told(formation_id, PrefixNews(16, True, NAMES[:count]))
    return index


def test_each_formation_has_as_much_as_it_told() -> None:
    assert index(a=4, b=1, c=0).found(REQUEST) == {"a": 64, "b": 16}


def test_a_beginning_counts_up_to_the_first_block_that_is_not_there() -> None:
    found = index(a=4)
    found.told("a", PrefixNews(16, False, (), (NAMES[1],)))
    assert found.found(REQUEST) == {"a": 16}
    found.told("a", PrefixNews(16, False, (NAMES[1],)))
    assert found.found(REQUEST) == {"a": 64}
    found.told("a", PrefixNews(16, True, ()))
    assert found.found(REQUEST) == {}


def test_blocks_of_another_size_are_asked_for_by_their_own_names() -> None:
    both = index(a=4)
    both.told("b", PrefixNews(32, True, tuple(map(told, chain_of(REQUEST, 32)))))
    assert both.found(REQUEST) == {"a": 64, "b": 64}


def test_what_a_formation_had_goes_with_it() -> None:
    both = index(a=2, b=3)
    both.keep(["b", "c"])
    assert both.found(REQUEST) == {"b": 48}


def test_no_head_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "MAX_HELD", 3)
    full = index(a=4)
    full.told("a", PrefixNews(16, False, NAMES))
    assert full.found(REQUEST) == {"a": 48}


ROUTES = [
    Route(name, f"f-{name}", "i", f"{name}:1", 100.0, REQUEST.model, 4096) for name in ("a", "b")
]


def test_who_has_most_of_a_prompt_is_named_where_it_goes_elsewhere() -> None:
    found = {"f-a": 640, "f-b": 32, "f-gone": 4096}
    assert holder_of(found, ROUTES[1], ROUTES) == PrefixHolder("a:1", "f-a", 640)
    assert holder_of(found, ROUTES[0], ROUTES) is None, "it goes to who has it"
    assert holder_of({}, ROUTES[0], ROUTES) is None


def test_little_more_than_there_is_already_is_not_worth_a_word() -> None:
    for more, told_of in ((LEAST_MORE - 16, False), (LEAST_MORE, True)):
        holder = holder_of({"f-a": 64 + more, "f-b": 64}, ROUTES[1], ROUTES)
        assert (holder is not None) is told_of
