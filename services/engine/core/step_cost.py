"""What a row more makes of a step's time, as steps of late have shown."""

from __future__ import annotations

FORGETTING = 0.98
"""What is left of one step's weight when the next one comes."""
GRANTED_ROWS = 16.0
"""Rows that cost as much as a step without any: weights are read once, however many rows there are.
Taken for granted until numbers of rows that differ have shown what is true."""
TRUST = 1.0
"""Weight of what is taken for granted: that of this variance of the rows a step."""
LEAST_SHARE = 1 / 256
"""A row is never for nothing: it costs this share of a step without any, at least."""
FIRM = 8.0
"""With so many steps seen, one that took far longer was held up by something else."""
HELD_UP = 2.0


class StepCost:
    """A line through steps' times over their rows, by least squares that forget."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._rows = self._time_s = 0.0
        """Means."""
        self._variance = self._covariance = 0.0
        """Of the rows; of rows and times."""

    def observe(self, rows: int, took_s: float) -> None:
        """A step of so many rows took so long."""
        if took_s <= 0:
            return
        if self._weight >= FIRM:
            took_s = min(took_s, HELD_UP * self.of(rows))
        self._weight = FORGETTING * self._weight + 1
        share = 1 / self._weight
        rows_off, time_off = rows - self._rows, took_s - self._time_s
        self._rows += share * rows_off
        self._time_s += share * time_off
        self._variance += share * (rows_off * (rows - self._rows) - self._variance)
        self._covariance += share * (rows_off * (took_s - self._time_s) - self._covariance)

    @property
    def known(self) -> bool:
        """A step was seen."""
        return self._weight > 0

    @property
    def row(self) -> float:
        """Of one row more; in seconds once a step was seen, and until then in a unit of its own."""
        if not self._weight:
            return 1.0
        granted = self._time_s / (GRANTED_ROWS + self._rows)
        slope = (self._covariance + TRUST * granted) / (self._variance + TRUST)
        least = self._time_s * LEAST_SHARE / (1 + self._rows * LEAST_SHARE)
        return min(max(slope, least), self._time_s / self._rows)

    def of(self, rows: int) -> float:
        """Of a step, in the same unit."""
        if not self._weight:
            return GRANTED_ROWS + rows
        return self._time_s + self.row * (rows - self._rows)
