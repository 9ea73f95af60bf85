"""Rotary embedding as one table, equal at every stage."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from services.model.rope import Rope


def rope_table(rope: Rope | None, positions: int, width: int) -> torch.Tensor:
    """Cosines, then sines, scaled: fp32 [positions, width], for heads of so many elements. What is
    not rotated, all of it without a rope, is turned by nothing.

    Angles are products of fp32 numbers as in the reference implementation; their cosine and sine
    are taken in fp64 and rounded once.
    """
    frequencies = () if rope is None else rope.frequencies
    factor = 1.0 if rope is None else rope.attention_factor
    steps = torch.tensor(frequencies, dtype=torch.float32)
    angles = (torch.arange(positions, dtype=torch.float32)[:, None] * steps).double()
    missing = width // 2 - len(frequencies)
    cosines = F.pad((angles.cos() * factor).float(), (0, missing), value=1.0)
    sines = F.pad((angles.sin() * factor).float(), (0, missing))
    return torch.cat((cosines, sines), dim=1).contiguous()
