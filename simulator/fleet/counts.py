"""How many requests a run had, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """Of requests."""

    arrived: int = 0
    finished: int = 0
    refused: int = 0
    failed: int = 0
    """None of the pipelines could hold them."""
    moves: int = 0
    lost: int = 0
    """Tokens that were thrown away, to be sampled again."""
