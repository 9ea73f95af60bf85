"""Rotary embedding as one table, equal at every stage."""

from __future__ import annotations

import torch

from services.model.rope import Rope


def rope_table(rope: Rope, positions: int) -> torch.Tensor:
    """Cosines, then sines, scaled: fp32 [positions, head_dim].

    Angles are products of fp32 numbers as in the reference implementation; their cosine and sine
    are taken in fp64 and rounded once.
    """
    steps = torch.tensor(rope.frequencies, dtype=torch.float32)
    angles = (torch.arange(positions, dtype=torch.float32)[:, None] * steps).double()
    table = torch.cat((angles.cos(), angles.sin()), dim=1) * rope.attention_factor
    return table.float().contiguous()
