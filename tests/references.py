"""Greedy ids against a model of transformers': where may they differ, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

SAME = 0.75
"""Of the ids, at least."""


def check_ids(
    reference: Any, prompt: Sequence[int], said: Sequence[int], *, doubt: float = 1
) -> None:
    """Each id is the reference's in fp32, or one that bf16 does not tell from it: what it lost is
    within twice what the reference's bf16 logits are off from its fp32 ones, times `doubt`.

    The reference is left in bf16.
    """
    ids = torch.tensor([[*prompt, *said]])
    behind = slice(len(prompt) - 1, -1)

    def logits(dtype: torch.dtype) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = reference.to(dtype)(ids).logits[0, behind].float()
        return found

    wide, narrow = logits(torch.float32), logits(torch.bfloat16)
    off = (wide - narrow).abs().max()
    lost = wide.max(1).values - wide[torch.arange(len(said)), list(said)]
    assert lost.max() <= 2 * doubt * off
    assert (lost == 0).float().mean() >= SAME
