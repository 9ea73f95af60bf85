"""What of a model divides for tensor parallelism: the one rule, for placement and for loading."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.errors import InvalidArgument

HEADS, KV_HEADS, INTERMEDIATE, VOCABULARY = "heads", "kv_heads", "intermediate", "vocabulary"
UNITS = (HEADS, KV_HEADS, INTERMEDIATE, VOCABULARY)
MAX_TP_DEGREE = 8
"""The highest degree that stored tensors are cut for."""
_DIVIDED = {
    HEADS: "attention heads",
    INTERMEDIATE: "feed-forward rows (intermediate_size)",
    VOCABULARY: "rows of vocabulary",
}


@dataclass(frozen=True)
class TensorParallel:
    """How many indivisible units a model has of each kind."""

    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int

    def units(self, kind: str) -> int:
        """How many indivisible units a kind of tensor has."""
        return int(getattr(self, kind))

    def divides(self, degree: int) -> bool:
        """Heads, feed-forward rows and vocabulary are cut into equal parts; key-value heads too, or
        each is held by equally many ranks."""
        return (
            degree >= 1
            and not (self.heads % degree or self.intermediate % degree or self.vocabulary % degree)
            and not (self.kv_heads % degree and degree % self.kv_heads)
        )

    def check_degree(self, degree: int, rank: int = 0) -> None:
        """Raises InvalidArgument unless every tensor divides by the degree and the rank exists."""
        if not 1 <= degree <= self.heads:
            raise InvalidArgument(
                f"TP degree {degree} is not between 1 and the model's {self.heads} attention heads",
                field="tp_degree",
            )
        if not self.divides(degree):
            raise InvalidArgument(self._why_not(degree), field="tp_degree")
        if not 0 <= rank < degree:
            raise InvalidArgument(f"rank {rank} is not in 0..{degree - 1}", field="tp_rank")

    def _why_not(self, degree: int) -> str:
        for kind, words in _DIVIDED.items():
            if self.units(kind) % degree:
                return f"TP degree {degree} does not divide the model's {self.units(kind)} {words}"
        return (
            f"TP degree {degree} neither divides the model's {self.kv_heads} key-value heads"
            " nor is a multiple of them"
        )

    def degrees(self) -> tuple[int, ...]:
        """The degrees that stored tensors are cut for and this model can be served at."""
        return tuple(degree for degree in range(1, MAX_TP_DEGREE + 1) if self.divides(degree))

    def unit_range(self, kind: str, degree: int, rank: int) -> tuple[int, int]:
        """The half-open range of units that one rank holds; the degree was checked before."""
        units = self.units(kind)
        if units % degree == 0:
            share = units // degree
            return rank * share, (rank + 1) * share
        first = rank * units // degree  # fewer key-value heads than ranks: each is held by several
        return first, first + 1

    def cuts(self, kind: str) -> tuple[int, ...]:
        """Every unit at which some rank's slice begins or ends, first and last included."""
        found = {0, self.units(kind)}
        for degree in self.degrees():
            for rank in range(degree):
                found.update(self.unit_range(kind, degree, rank))
        return tuple(sorted(found))
