"""Where the ranks of a stage meet: memory that they share, and what they tell one another there."""

from __future__ import annotations

import mmap
import os

import torch
from torch import Tensor

from services.engine.native.kernels import Kernels

AREA_BYTES = 1 << 20
"""What a rank writes at a time; more rows take more meetings."""


class Meeting:
    """One rank's side of it. Every rank makes the same calls in the same order."""

    def __init__(
        self, kernels: Kernels, memory_fd: int, rank: int, ranks: int, row_bytes: int
    ) -> None:
        """`memory_fd` is a file that all ranks of the stage have open, empty at first; `row_bytes`
        the longest row that any of them tells."""
        area_bytes = max(AREA_BYTES, (row_bytes + 63) // 64 * 64)
        size_bytes = kernels.ranks_memory_bytes(ranks, area_bytes)
        os.ftruncate(memory_fd, size_bytes)
        memory = mmap.mmap(memory_fd, size_bytes)
        self.rank, self.ranks = rank, ranks
        self._kernels = kernels
        self._memory = torch.frombuffer(memory, dtype=torch.uint8)
        self.handle: int = kernels.ranks_new(self._memory.data_ptr(), rank, ranks, area_bytes)

    def gather(self, mine: Tensor) -> Tensor:
        """[rows, width] of every rank as [rows, ranks, width]."""
        mine = mine.contiguous()
        every = mine.new_empty((len(mine), self.ranks, mine.shape[1]))
        self._kernels.ranks_gather(
            self.handle,
            mine.data_ptr(),
            len(mine),
            mine.shape[1] * mine.element_size(),
            every.data_ptr(),
        )
        return every

    def close(self) -> None:
        """Nothing may be called afterwards."""
        if self.handle:
            self._kernels.ranks_free(self.handle)
            self.handle = 0
