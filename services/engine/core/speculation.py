"""Which guesses of the sequences in a step are worth a row of it."""

from __future__ import annotations

from collections.abc import Sequence

from services.engine.core.lookup import Lookup
from services.engine.core.step_cost import StepCost


class Speculation:
    """Guesses for the batches of one formation."""

    def __init__(self, max_drafts: int, max_asked: int) -> None:
        """Of a sequence, and rows of a step that yield tokens."""
        self.cost = StepCost()
        self._max_drafts = max_drafts
        self._max_asked = max_asked

    def drafts(self, lookups: Sequence[Lookup], beside: int = 0) -> list[tuple[int, ...]]:
        """For each of some sequences that a step decodes, `beside` so many other rows."""
        if not self._max_drafts:
            return [()] * len(lookups)
        guesses = [lookup.guess(self._max_drafts) for lookup in lookups]
        chances = [lookup.chances(len(g)) for lookup, g in zip(lookups, guesses, strict=True)]
        counts = worthwhile(chances, self._max_asked - len(lookups) - beside, self.cost)
        return [tuple(guess[:count]) for guess, count in zip(guesses, counts, strict=True)]


def worthwhile(chances: Sequence[Sequence[float]], room: int, cost: StepCost) -> list[int]:
    """For each sequence that decodes, how many of its guesses to run beside its own row, so that a
    step yields the most tokens for its time; at most `room` in all.

    `chances` are those of each sequence's guesses, falling. The likeliest comes first, for as long
    as the next one yields more for its row than the step does as a whole: tokens / time rises
    while chance x time > row x tokens.
    """
    counts, rows = [0] * len(chances), len(chances)
    tokens, row = float(rows), cost.row
    likeliest = sorted(
        ((chance, index) for index, each in enumerate(chances) for chance in each),
        key=lambda guess: -guess[0],
    )
    for chance, index in likeliest[: max(0, room)]:
        if chance * cost.of(rows) <= row * tokens:
            break
        counts[index] += 1
        tokens += chance
        rows += 1
    return counts
