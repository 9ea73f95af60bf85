"""Results that have come and are not written down yet, and when they are."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.router.core.batches.batch import Usage

FIRST_S = 2.0
LONGEST_S = 300.0
OF_AGE = 0.01
"""Of a batch's age results wait so much: pieces grow with it, and there are never many. It stays
below what the journal keeps a generation for, which is how long a lost result can be had again."""
PIECE_BYTES = 4 << 20


@dataclass(slots=True)
class Results:
    """What one put of the batch will note."""

    lines: list[int] = field(default_factory=list)
    answered: bytearray = field(default_factory=bytearray)
    failed: bytearray = field(default_factory=bytearray)
    failures: int = 0
    usage: Usage = field(default_factory=Usage)
    since_s: float = 0.0

    def add(self, line: int, result: bytes, usage: Usage | None, now_s: float) -> None:
        """One line's; without usage it failed."""
        if not self.lines:
            self.since_s = now_s
        self.lines.append(line)
        if usage is None:
            self.failed += result
            self.failures += 1
        else:
            self.answered += result
            self.usage = self.usage + usage

    def due_in_s(self, age_s: float, now_s: float) -> float | None:
        """When they are to be written down, of a batch of this age; None while there are none."""
        if not self.lines:
            return None
        if len(self.answered) + len(self.failed) >= PIECE_BYTES:
            return 0.0
        waits_s = min(max(FIRST_S, OF_AGE * age_s), LONGEST_S)
        return max(0.0, self.since_s + waits_s - now_s)
