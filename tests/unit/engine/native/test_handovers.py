"""Twenty generations are handed over by their blocks at every position, from each layout to
another: what follows is what would have followed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from services.engine.backend import BLOCK_SIZE
from services.engine.native import kernels
from services.engine.native.stage import NativeStage
from tests import moved_blocks
from tests.pipelines import Pipeline
from tests.unit.engine.native.ranked import on_ranks

LAYERS = 30
SMALL = {
    "num_hidden_layers": LAYERS,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 516,
}
GENERATIONS = 20
TOKENS = 12


def generation(number: int) -> tuple[list[int], dict[str, Any]]:
    """A prompt of some length, and how it is sampled: every other one greedily."""
    chance = Random(number)
    prompt = [chance.randrange(3, 500) for _ in range(chance.randrange(8, 3 * BLOCK_SIZE))]
    seeded = {"temperature": 0.9, "top_p": 0.95, "seed": number, "frequency_penalty": 0.3}
    return prompt, seeded if number % 2 else {}


ALL = [generation(number) for number in range(GENERATIONS)]


@pytest.mark.parametrize(
    ("before", "after"),
    [((18,), (18,)), ((18,), (12,)), ((18,), (7, 19))],
    ids=["equal", "18+12 to 12+18", "two to three"],
)
def test_between_layers(
    tiny_model: Any, pipeline: type[Pipeline], before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    model = tiny_model(**SMALL)

    def stages(cuts: tuple[int, ...]) -> Pipeline:
        return pipeline([model.stage(range(a, b)) for a, b in pairwise((0, *cuts, LAYERS))])

    source, target = stages(before), stages(after)
    texts = set()
    for prompt, sampling in ALL:
        alone = source.generate(prompt, TOKENS, **sampling)
        texts.add(tuple(alone))
        moved_blocks.check(source, target, prompt, alone, sampling)
    assert len(texts) > GENERATIONS / 2


@pytest.mark.skipif(kernels.load() is None, reason="needs a compiler and a known CPU")
def test_from_one_rank_to_two(tiny_model: Any, pipeline: type[Pipeline]) -> None:
    """Each takes its heads of all."""
    model = tiny_model(**SMALL)

    def give(stage: NativeStage) -> Any:
        source, found = pipeline([stage]), []
        for prompt, sampling in ALL:
            alone = source.generate(prompt, TOKENS, **sampling)
            known = [*prompt, *alone]
            with moved_blocks.filled(source, known, sampling):
                blocks = source.table(moved_blocks.SOURCE)[: (len(known) - 1) // BLOCK_SIZE]
                found.append((alone, stage.export_blocks(blocks)))
        return stage.kv_layout, found

    ((layout, generations),) = on_ranks(model, 1, give)

    def take(stage: NativeStage) -> None:
        target = pipeline([stage])
        assert stage.kv_layout == layout

        def put(blocks: list[bytes]) -> Callable[[int], None]:
            table = target.table(moved_blocks.TARGET)
            return lambda full: stage.import_blocks(table[:full], blocks[:full])

        for (prompt, sampling), (alone, blocks) in zip(ALL, generations, strict=True):
            moved_blocks.check_target(target, put(blocks), prompt, alone, sampling)

    on_ranks(model, 2, take)
