"""The self-test of a loaded stage, and the fingerprint of its arithmetic.

Is a row's result its own? Random hidden states run through the stage's own layers as one prefill,
as chunks, row by row, and among other sequences of other lengths. Hidden states, the logits of the
last stage, and so the KV cache that both are made from, must be equal bit for bit.

Do two nodes compute alike? Each runs one small made-up model and digests every bit of the result:
nodes that differ in instructions, build or library differ in class, whatever they call themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from services.engine.backend import BLOCK_SIZE
from services.engine.native.arithmetic import Arithmetic, Packing, Span
from services.model.config import ModelConfig
from services.model.rope import plain_rope
from services.model.tensors import stage_shapes

ROWS = 40
"""Positions of the sequence that is run in all ways: two and a half blocks."""
NEIGHBOURS = (1, 3, 17)
"""Rows of the sequences beside it."""
CUTS = ((ROWS,), (13, 16, 10, 1), (33, *[1] * (ROWS - 33)))
SEED = 1
PROBE = ModelConfig(
    hidden_size=64,
    intermediate_size=1104,
    layer_count=2,
    heads=6,
    kv_heads=2,
    head_dim=32,
    vocab_size=80,
    context_length=4 * BLOCK_SIZE,
    rms_norm_eps=1e-5,
    rope=plain_rope(10000.0, 32),
    qk_norm=True,
    tied_embeddings=False,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    windows=(0, BLOCK_SIZE + 3),
)
"""Small, but with sums longer than any piece that some implementation adds up at once."""

Packer = Callable[[ModelConfig], Packing[Any, Any]]
"""An implementation, for any model."""


def _blocks(first: int, positions: int) -> range:
    return range(first, first + (positions + BLOCK_SIZE - 1) // BLOCK_SIZE)


def _alone(arithmetic: Arithmetic, hidden: Tensor, cuts: tuple[int, ...], table: range) -> Tensor:
    results, start = [], 0
    for count in cuts:
        chunk = hidden[start : start + count].clone()
        results.append(arithmetic.forward(chunk, [Span(0, count, start, table)]).cpu())
        start += count
    return torch.cat(results)


def _together(
    arithmetic: Arithmetic, hidden: Tensor, others: list[Tensor], tables: list[range]
) -> Tensor:
    """The sequence's first rows as prefill between others, the rest one by one between others."""
    results, half = [], len(hidden) // 2
    starts = [0] * len(others)
    for start, count in ((0, half), *((row, 1) for row in range(half, len(hidden)))):
        rows, spans, first = [], [], 0
        for index, other in enumerate(others):
            left = min(count if index % 2 else 1, len(other) - starts[index])
            if left <= 0:
                continue
            rows.append(other[starts[index] : starts[index] + left])
            spans.append(Span(first, left, starts[index], tables[index + 1]))
            starts[index] += left
            first += left
        rows.append(hidden[start : start + count])
        spans.append(Span(first, count, start, tables[0]))
        results.append(arithmetic.forward(torch.cat(rows), spans)[first : first + count].cpu())
    return torch.cat(results)


def is_exact(
    arithmetic: Arithmetic, config: ModelConfig, kv_blocks: int, dtype: torch.dtype, *, last: bool
) -> bool:
    """Whether every way of running one sequence gives the same bits; about a second.

    Uses KV blocks from 0 on, as many as there are of those it needs.
    """
    generator = torch.Generator().manual_seed(SEED)
    longest = min(ROWS, kv_blocks * BLOCK_SIZE, config.context_length)

    def random(rows: int) -> Tensor:
        return torch.randn((rows, config.hidden_size), generator=generator).to(dtype)

    hidden = random(longest)
    tables = [_blocks(0, longest)]
    others: list[Tensor] = []
    for count in NEIGHBOURS:
        table = _blocks(tables[-1].stop, count)
        if table.stop <= kv_blocks:
            others.append(random(count))
            tables.append(table)
    reference = _alone(arithmetic, hidden, (longest,), tables[0])
    for cuts in CUTS[1:]:
        if sum(cuts) == longest and not torch.equal(
            reference, _alone(arithmetic, hidden, cuts, tables[0])
        ):
            return False
    if not torch.equal(reference, _together(arithmetic, hidden, others, tables)):
        return False
    if not last:
        return True
    logits = arithmetic.logits(reference[: NEIGHBOURS[-1]].clone())
    alone = [arithmetic.logits(reference[row : row + 1].clone()) for row in range(len(logits))]
    return torch.equal(logits, torch.cat(alone)) and bool(torch.isfinite(reference).all())


def _made_up(shape: tuple[int, ...], salt: int) -> Tensor:
    """Numbers in [-1, 1] that every machine makes alike: a multiplicative hash of the index."""
    count = torch.Size(shape).numel()
    index = torch.arange(count, dtype=torch.int64) + salt * 1_000_003
    hashed = (index * 2654435761 >> 7) % 2001
    return ((hashed - 1000).float() / 1000).view(shape)


def fingerprint(packer: Packer, dtype: torch.dtype) -> str:
    """Eight hexadecimal digits that stand for the bits this arithmetic produces."""
    tensors = {
        name: _made_up(shape, salt) / (shape[-1] ** 0.5 if len(shape) > 1 else 1)
        for salt, (name, shape) in enumerate(stage_shapes(PROBE, range(2)).items())
    }
    packing = packer(PROBE)
    layers = [packing.layer(tensors, layer) for layer in range(2)]
    arithmetic = packing.arithmetic(layers, packing.head(tensors), 3)
    try:
        rows = _made_up((ROWS, PROBE.hidden_size), SEED).to(dtype)
        hidden = arithmetic.forward(rows, [Span(0, ROWS, 0, range(3))]).cpu()
        logits = arithmetic.logits(hidden)
    finally:
        arithmetic.close()
    digest = hashlib.sha256(hidden.float().numpy().tobytes() + logits.numpy().tobytes())
    return digest.hexdigest()[:8]
