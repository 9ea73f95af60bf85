"""The self-test of a stage of this backend, and the fingerprint of its arithmetic.

Do two nodes compute alike? Each runs one small made-up model and digests every bit of the result:
nodes that differ in instructions, build or library differ in class, whatever they call themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.engine.backend import BLOCK_SIZE
from services.engine.native.arithmetic import Arithmetic, Packing
from services.engine.native.slices import Slice, slice_of
from services.engine.stage import exactness
from services.engine.stage.exactness import ROWS, Rows
from services.engine.stage.spans import Span
from services.model.config import ModelConfig
from services.model.rope import plain_rope
from services.model.tensors import stage_shapes

SEED = 1
PROBE = ModelConfig(
    hidden_size=64,
    intermediate_size=1104,
    layer_count=2,
    heads=8,
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
"""Small, but with sums longer than any piece that some implementation adds up at once; it divides
among as many ranks as any model."""
_OWN = ("pre_norms", "post_norms", "whole_qk_norm", "activation", "attention_cap", "logits_cap")
"""What a family computes otherwise, and the made-up model as that family does."""

Packer = Callable[[Slice], Packing[Any, Any]]
"""An implementation, for any model, or for one rank's slice of it."""


class _Computes:
    """An arithmetic as the self-test asks it: arrays in and out."""

    def __init__(self, arithmetic: Arithmetic, dtype: torch.dtype) -> None:
        self._arithmetic, self._dtype = arithmetic, dtype

    def forward(self, rows: Rows, spans: Sequence[Span]) -> Rows:
        return self._arithmetic.forward(self._tensor(rows), spans).cpu().float().numpy()

    def logits(self, rows: Rows) -> NDArray[np.float32]:
        return self._arithmetic.logits(self._tensor(rows)).numpy()

    def _tensor(self, rows: Rows) -> Tensor:
        """A copy: the layers write in place."""
        return torch.from_numpy(rows).to(self._dtype, copy=True)


def is_exact(
    arithmetic: Arithmetic, config: ModelConfig, kv_blocks: int, dtype: torch.dtype, *, last: bool
) -> bool:
    """Whether every way of running one sequence gives the same bits; about a second."""
    generator = torch.Generator().manual_seed(SEED)

    def draw(rows: int) -> Rows:
        drawn = torch.randn((rows, config.hidden_size), generator=generator)
        return drawn.to(dtype).float().numpy()

    positions = min(ROWS, kv_blocks * BLOCK_SIZE, config.context_length)
    return exactness.is_exact(
        _Computes(arithmetic, dtype),
        draw,
        context_length=config.context_length,
        kv_blocks=kv_blocks,
        last=last,
    ) and (not last or _computes_asked_rows(arithmetic, torch.from_numpy(draw(positions)), dtype))


def _computes_asked_rows(arithmetic: Arithmetic, rows: Tensor, dtype: torch.dtype) -> bool:
    """Whether rows that are asked for are what they are among all."""
    count = len(rows)
    spans = [Span(0, count, 0, range((count + BLOCK_SIZE - 1) // BLOCK_SIZE))]
    asked = [row for row in range(count) if row % 3 == 0 or row == count - 1]
    every = arithmetic.forward(rows.to(dtype, copy=True), spans)
    return arithmetic.forward(rows.to(dtype, copy=True), spans, asked).equal(every[asked])


def _made_up(shape: tuple[int, ...], salt: int) -> Tensor:
    """Numbers in [-1, 1] that every machine makes alike: a multiplicative hash of the index."""
    count = torch.Size(shape).numel()
    index = torch.arange(count, dtype=torch.int64) + salt * 1_000_003
    hashed = (index * 2654435761 >> 7) % 2001
    return ((hashed - 1000).float() / 1000).view(shape)


def fingerprint(
    packer: Packer, dtype: torch.dtype, config: ModelConfig, degree: int = 1, rank: int = 0
) -> str:
    """Eight hexadecimal digits that stand for the bits that are produced for such a model; by all
    ranks of a stage together, where it has several."""
    probe = replace(PROBE, **{name: getattr(config, name) for name in _OWN})
    part = slice_of(probe, degree, rank)
    tensors = {
        name: _made_up(shape, salt) / (shape[-1] ** 0.5 if len(shape) > 1 else 1)
        for salt, (name, shape) in enumerate(stage_shapes(probe, range(2)).items())
    }
    tensors, packing = part.of(tensors, range(2)), packer(part)
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
