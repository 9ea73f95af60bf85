"""Tables of experiments: figures by row and column, compared and told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Cell = float | str | None
"""A figure, words, or nothing."""
Rows = dict[str, dict[str, Cell]]
"""By the row's and the column's name."""
DIGITS = 6
"""Of figures that are written down."""
SAME = 0.02
"""Machines round differently, and a simulation of an hour makes more of it."""
ZERO = 1e-6
"""Figures below are none."""


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of every row."""

    name: str
    form: str = ".3g"
    compared: bool = True
    """Otherwise it tells of one of several answers that are as good."""
    measured: bool = False
    """It tells of the machine that it was found on: never compared, and written only when asked."""

    def text(self, cell: Cell) -> str:
        """As people read it."""
        if cell is None:
            return ""
        return cell if isinstance(cell, str) else format(cell, self.form)


def rounded(rows: Rows) -> Rows:
    """As it is written down."""
    return {
        row: {
            name: float(f"{cell:.{DIGITS}g}") if isinstance(cell, int | float) else cell
            for name, cell in cells.items()
        }
        for row, cells in rows.items()
    }


def without_measured(columns: Sequence[Column], found: Rows, written: Rows) -> Rows:
    """What was found, but of the machine what is written already, row by row."""
    measured = [one.name for one in columns if one.measured]
    return {
        row: {name: cell for name, cell in cells.items() if name not in measured}
        | {name: cell for name, cell in written.get(row, {}).items() if name in measured}
        for row, cells in found.items()
    }


def differences(
    columns: Sequence[Column], expected: Rows, found: Rows, *, whole: bool = True
) -> list[str]:
    """Figures that are others than expected beyond rounding, or were not expected at all; and, of
    what should be the `whole`, rows that are missing."""
    told = [f"{row}: was not expected" for row in found if row not in expected]
    told += [f"{row}: is missing" for row in expected if whole and row not in found]
    for row in (row for row in expected if row in found):
        for column in (one for one in columns if one.compared and not one.measured):
            was, is_ = expected[row].get(column.name), found[row].get(column.name)
            if not _same(is_, was):
                texts = (column.text(cell) or "nothing" for cell in (is_, was))
                told.append(f"{row}: {column.name} is {', not '.join(texts)}")
    return told


def _same(found: Cell, expected: Cell) -> bool:
    if isinstance(found, int | float) and isinstance(expected, int | float):
        return abs(found - expected) <= max(ZERO, SAME * abs(expected))
    return found == expected


def markdown(columns: Sequence[Column], rows: Mapping[str, Mapping[str, Cell]]) -> str:
    """For a README, and a terminal."""
    lines = [
        "| | " + " | ".join(column.name for column in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for row, cells in rows.items():
        texts = (column.text(cells.get(column.name)) for column in columns)
        lines.append(f"| {row} | " + " | ".join(texts) + " |")
    return "\n".join(lines)
