"""Shared blocks change no id: the production scheduler over stages, against each sequence alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

from bench.scheduled import Scheduled
from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.engine.backend import StageBackend
from services.engine.core.actions import SequenceKey
from services.engine.core.scheduler import SchedulerSettings

MODEL = ModelRef("tiny", "d")
BEGINNINGS = [tuple(5 + (7 * i + 13 * n) % 500 for i in range(48)) for n in range(2)]
WAYS = ({"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.95, "frequency_penalty": 0.3})


def _requests(chance: random.Random) -> list[GenerationRequest]:
    requests = []
    for index in range(chance.randint(4, 8)):
        tail = tuple(chance.randrange(500) for _ in range(chance.choice((1, 5, 20))))
        prompt = chance.choice(BEGINNINGS)[: chance.choice((16, 33, 48))] + tail
        sampling = Sampling(chance.choice((1, 20, 45)), seed=index, **chance.choice(WAYS))
        choices, salt = chance.choice((1, 1, 2)), chance.choice(("", "", "s"))
        requests.append(
            GenerationRequest(f"g{index}", MODEL, prompt, sampling, choices, cache_salt=salt)
        )
    return requests


def check_mixes(whole: Sequence[StageBackend], split: Sequence[StageBackend], mixes: int) -> None:
    """Over one stage and two of the same tiny model; chunks, evictions, preemptions, choices, salts
    and cancels. The stages are begun anew."""
    hits = evicted = preemptions = 0
    for seed in range(mixes):
        chance = random.Random(seed)
        requests = _requests(chance)
        expected: dict[SequenceKey, list[int]] = {}
        for request in requests:
            alone = Scheduled(whole, SchedulerSettings(share_prefixes=False, max_drafts=0), 64)
            alone.start(request)
            alone.finish()
            expected |= alone.outputs
        budget, places = chance.choice(((9, 3), (24, 6), (256, 64)))
        settings = SchedulerSettings(budget, places, chance.randint(1, 3), chance.choice((8, 999)))
        run = Scheduled(chance.choice((whole, split)), settings, chance.choice((8, 8, 64)))
        gone = set()
        for request in requests:
            run.start(request)
            for _ in range(chance.choice((0, 4, 12))):
                run.depart() if chance.random() < 0.6 else run.arrive()
            if chance.random() < 0.2:
                gone.add(SequenceKey(request.generation_id, 1, 0))
                run.scheduler.stop(SequenceKey(request.generation_id, 1, 0))
        run.finish()
        for key, output in run.outputs.items():
            assert output == (expected[key][: len(output)] if key in gone else expected[key]), seed
        hits += sum(step.cache.hits for step in run.steps)
        evicted += sum(step.cache.evicted for step in run.steps)
        preemptions += run.scheduler.preemptions
        assert run.scheduler.used_blocks == 0
    assert hits > 40 * mixes
    assert evicted > 2 * mixes
    assert preemptions >= mixes // 8
