"""One rank of a stage, as its backend is told of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rank:
    """Rank `number`, from 0, of `count`."""

    number: int
    count: int
    memory_fd: int
    """A file that all ranks of the stage have open, and nobody else: empty at first."""
    meeting: str
    """A name that all ranks of the stage have, and nobody else on this host."""

    def device(self, first: str) -> str:
        """Its own, where rank 0 computes on this one: cpu, cuda, cuda:2."""
        kind, _, number = first.partition(":")
        return first if kind == "cpu" else f"{kind}:{int(number or 0) + self.number}"
