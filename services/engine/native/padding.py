"""Sizes for kernels that take sixteen numbers at a time.

What a model lacks to whole lanes is filled with zeros: rows and columns of weights, elements of
norms. A zero adds nothing to a sum, so the numbers are those of the model as it is. A head's two
halves are padded each, for rotation pairs them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from services.model.config import ModelConfig

LANES = 16


def whole_lanes(size: int) -> int:
    """The size, rounded up to whole lanes."""
    return (size + LANES - 1) // LANES * LANES


def padded(config: ModelConfig) -> ModelConfig:
    """The model with its sizes in whole lanes."""
    return replace(
        config,
        hidden_size=whole_lanes(config.hidden_size),
        intermediate_size=whole_lanes(config.intermediate_size),
        head_dim=whole_lanes(config.head_dim),
    )


def widen(tensor: Tensor, *shape: int) -> Tensor:
    """Zeros behind the end of every axis, up to the shape."""
    if tuple(tensor.shape) == shape:
        return tensor
    missing = [(0, wanted - held) for wanted, held in zip(shape, tensor.shape, strict=True)]
    return F.pad(tensor, [amount for pair in reversed(missing) for amount in pair])


@dataclass(frozen=True, slots=True)
class HeadPadding:
    """Where the elements of a head lie in a padded one."""

    head_dim: int

    @property
    def width(self) -> int:
        """Elements of a padded head."""
        return whole_lanes(self.head_dim)

    def rows(self, tensor: Tensor) -> Tensor:
        """[heads * head_dim, ...] as [heads * width, ...]."""
        if self.width == self.head_dim:
            return tensor
        half, rest = self.head_dim // 2, tensor.shape[1:]
        halves = tensor.reshape(-1, half, *rest)
        spread = tensor.new_zeros((len(halves), self.width // 2, *rest))
        spread[:, :half] = halves
        return spread.view(-1, *rest)

    def columns(self, matrix: Tensor) -> Tensor:
        """[n, heads * head_dim] as [n, heads * width]."""
        return matrix if self.width == self.head_dim else self.rows(matrix.t()).t().contiguous()
