"""Blocks that go from one pipeline's caches to another's: the rest of a text is what it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from services.engine.backend import BLOCK_SIZE, Batch, StageBackend
from tests.pipelines import Pipeline

SOURCE, TARGET = 1, 2
"""Slots, so that blocks have other ids there."""


def layers_of(stages: Sequence[StageBackend], blocks: Sequence[int]) -> list[dict[int, bytes]]:
    """Of each block its bytes by layer."""
    found: list[dict[int, bytes]] = [{} for _ in blocks]
    for stage in stages:
        layout, held = stage.kv_layout, stage.facts.layers
        for by_layer, data in zip(found, stage.export_blocks(blocks), strict=True):
            for layer in held:
                by_layer[layer] = bytes(layout.cut(data, held, range(layer, layer + 1)))
    return found


def copy(
    source: Sequence[StageBackend],
    blocks: Sequence[int],
    target: Sequence[StageBackend],
    others: Sequence[int],
) -> None:
    """As stages of other layers, or on other ranks, have them."""
    found = layers_of(source, blocks)
    for stage in target:
        data = [b"".join(by_layer[n] for n in stage.facts.layers) for by_layer in found]
        stage.import_blocks(others, data)


def check(
    source: Pipeline,
    target: Pipeline,
    prompt: Sequence[int],
    alone: Sequence[int],
    sampling: Mapping[str, Any],
) -> None:
    """`alone` is the undisturbed text. At every position the full blocks are copied, and the target
    goes on behind them, to the end of the block that comes next."""
    with filled(source, [*prompt, *alone], sampling):
        layouts = {stage.kv_layout.name for stage in (*source.stages, *target.stages)}
        assert len(layouts) == 1

        def put(full: int) -> None:
            blocks, others = source.table(SOURCE)[:full], target.table(TARGET)[:full]
            copy(source.stages, blocks, target.stages, others)

        check_target(target, put, prompt, alone, sampling)


@contextmanager
def filled(source: Pipeline, known: Sequence[int], sampling: Mapping[str, Any]) -> Iterator[None]:
    """The caches hold a whole text, but for its last id."""
    opens = [source.open(SOURCE, known, **sampling)]
    source.run(Batch([source.step(SOURCE, 0, len(known) - 1, sample=False)], opens), known[:-1])
    yield
    source.run(Batch([], closes=[SOURCE]), [])


def check_target(
    target: Pipeline,
    put: Callable[[int], object],
    prompt: Sequence[int],
    alone: Sequence[int],
    sampling: Mapping[str, Any],
) -> None:
    """At every position so many full blocks are `put` into the target, which goes on behind
    them."""
    for cut in range(len(alone)):
        full = (len(prompt) + cut - 1) // BLOCK_SIZE
        put(full)
        ids, start = list(alone[:cut]), full * BLOCK_SIZE
        opens = [target.open(TARGET, prompt, ids, **sampling)]
        most = min(len(alone), cut + BLOCK_SIZE + 2 if cut % BLOCK_SIZE == 0 else cut + 1)
        while len(ids) < most:
            end = len(prompt) + len(ids)
            rows = [*prompt, *ids][start:end]
            batch = Batch([target.step(TARGET, start, end - start)], opens)
            ids.append(target.run(batch, rows)[0].token_id)
            start, opens = end, []
        target.run(Batch([], closes=[TARGET]), [])
        assert ids == list(alone[:most]), cut
