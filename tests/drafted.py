"""Drafts change no id: the production scheduler over stages, against every sequence alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from bench.scheduled import Scheduled
from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.engine.backend import StageBackend
from services.engine.core.actions import SequenceKey
from services.engine.core.scheduler import SchedulerSettings

PROMPTS = [[5 + (7 * i + 13 * n) % 500 for i in range(n)] for n in (1, 9, 15, 17, 33)]
FEW = {5: 40.0, 6: 40.0, 7: 40.0, 9: 39.0}
"""A text of four ids says the same pairs again and again, whatever is drawn."""
WAYS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "logit_bias": FEW, "frequency_penalty": 0.2},
    {"temperature": 0.9, "logit_bias": FEW, "top_p": 0.95},
    {"temperature": 0.7, "logit_bias": FEW, "stop_token_ids": (9,), "min_tokens": 12},
    {"temperature": 1.0, "top_k": 40, "repetition_penalty": 1.1},
)


def _requests(chance: random.Random) -> list[GenerationRequest]:
    requests = []
    for index in range(chance.randint(3, 7)):
        sampling = Sampling(
            max_tokens=chance.choice((1, 20, 45)), seed=chance.randrange(99), **chance.choice(WAYS)
        )
        prompt = tuple(chance.choice(PROMPTS))
        model = ModelRef("tiny", "d")
        requests.append(
            GenerationRequest(f"g{index}", model, prompt, sampling, chance.choice((1, 1, 2)))
        )
    return requests


def _alone(
    stages: Sequence[StageBackend], request: GenerationRequest
) -> dict[SequenceKey, list[int]]:
    run = Scheduled(stages, SchedulerSettings(max_drafts=0), 64)
    run.start(request)
    run.finish()
    return run.outputs


def check_mixes(whole: Sequence[StageBackend], split: Sequence[StageBackend], mixes: int) -> None:
    """Over one stage and two of the same tiny model, chunks, cuts, preemptions, choices, greedy and
    seeded. The stages are begun anew."""
    accepted = wrong = preemptions = 0
    for seed in range(mixes):
        chance = random.Random(seed)
        requests = _requests(chance)
        expected: dict[SequenceKey, list[int]] = {}
        for request in requests:
            expected.update(_alone(whole, request))
        budget, places = chance.choice(((9, 3), (24, 6), (256, 64)))
        settings = SchedulerSettings(budget, places, chance.randint(1, 3), chance.choice((8, 999)))
        run = Scheduled(chance.choice((whole, split)), settings, chance.choice((5, 7, 64)))
        for request in requests:
            said = expected[SequenceKey(request.generation_id, 1, 0)]
            run.start(request, said[: chance.choice((0, 0, chance.randrange(len(said))))])
            for _ in range(chance.choice((0, 0, 12))):
                run.depart() if chance.random() < 0.6 else run.arrive()
        run.finish()
        assert run.outputs == expected, seed
        accepted += run.accepted
        wrong += sum(step.drafted for step in run.steps) - run.accepted
        preemptions += run.scheduler.preemptions
        assert run.scheduler.used_blocks == 0
    assert min(accepted, wrong) > 4 * mixes, (accepted, wrong)
    assert preemptions >= mixes // 8, preemptions
