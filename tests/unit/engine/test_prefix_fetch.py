"""A prompt's beginning is asked of its holder, and of those who keep it, in one time for both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.common.exchange import KvMember, KvSource, PrefixHolder
from services.common.generation import LayerRange
from services.engine.core.incoming import KvFetch
from services.engine.kv_moves import Brought
from services.engine.prefix_fetch import brought_from

HOLDER = PrefixHolder("a:1", "other", 64)
MEMBERS = (KvMember("b:1", "i", LayerRange(0, 4)),)
BLOCKS = tuple((b"%d" % index, 10 + index) for index in range(4))
FETCH = KvFetch(3, KvSource("other", (), 2.0), BLOCKS, HOLDER)
FORMATION: Any = object()


class Pipeline:
    """It offers so many blocks, and the stages get so many of them."""

    def __init__(self, offers: int, brings: int | None, *, offer_s: float = 0.5) -> None:
        self.fetches: list[KvFetch] = []
        self.now_s = 100.0
        self._offers, self._brings, self._offer_s = offers, brings, offer_s

    async def offer(
        self, formation: Any, holder: PrefixHolder, names: Sequence[bytes], limit_s: float
    ) -> tuple[int, KvSource]:
        assert (holder, names, limit_s) == (HOLDER, FETCH.names, 2.0)
        self.now_s += self._offer_s
        return self._offers, KvSource("other", MEMBERS, limit_s)

    async def fetch(self, formation: Any, fetch: KvFetch) -> Brought:
        self.fetches.append(fetch)
        return Brought(self._brings, 7)


async def brought(pipeline: Any) -> Brought:
    return await brought_from(pipeline, FORMATION, FETCH, HOLDER, lambda: pipeline.now_s)


def counted(outcome: str) -> float:
    name, labels = "shunt_engine_prefix_fetches_total", {"outcome": outcome}
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize(
    ("offers", "brings", "outcome"),
    [(4, 4, "whole"), (2, 2, "part"), (4, 1, "part"), (4, 0, "missed"), (4, None, "missed")],
)
async def test_of_what_is_offered_as_much_is_there_as_the_stages_got(
    offers: int, brings: int | None, outcome: str
) -> None:
    before, pipeline = counted(outcome), Pipeline(offers, brings)
    assert await brought(pipeline) == Brought(brings, 7)
    (fetch,) = pipeline.fetches
    assert (fetch.number, fetch.blocks) == (FETCH.number, BLOCKS[:offers])
    assert fetch.source.members == MEMBERS
    assert counted(outcome) == before + 1


async def test_the_stages_have_what_the_offer_left_of_the_time() -> None:
    pipeline = Pipeline(4, 4, offer_s=1.5)
    await brought(pipeline)
    assert [fetch.source.fetch_s for fetch in pipeline.fetches] == [0.5]


@pytest.mark.parametrize(("offers", "offer_s"), [(0, 0.5), (4, 2.0)])
async def test_where_nothing_is_offered_in_time_no_stage_is_asked(
    offers: int, offer_s: float
) -> None:
    before, pipeline = counted("missed"), Pipeline(offers, 4, offer_s=offer_s)
    assert await brought(pipeline) == Brought(0)
    assert pipeline.fetches == []
    assert counted("missed") == before + 1
