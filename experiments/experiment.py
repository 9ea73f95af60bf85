"""What an experiment is: a folder, the columns of its table, and how its rows are found."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from experiments.table import Column, Rows, markdown, rounded, without_measured

HERE = Path(__file__).parent
EXPECTED, README = "expected.json", "README.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"


class Size(StrEnum):
    """How much of an experiment is run."""

    TINY = "tiny"
    """Seconds: what tests run."""
    QUICK = "quick"
    """All of them in a few minutes of one core."""
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Ground:
    """What a run of an experiment may use."""

    size: Size
    jobs: int = 1
    """Processes."""
    data: Path | None = None
    """Where public traces and measurements lie; rows of those that are not there are left out."""
    report: Path | None = None
    """A folder for reports of what was simulated."""
    measures: bool = True
    """Also what only a mesh on this machine can tell."""

    def public(self, name: str) -> Path | None:
        """A file or folder of public data, if it is there."""
        path = self.data / name if self.data is not None else None
        return path if path is not None and path.exists() else None


@dataclass(frozen=True, slots=True)
class Experiment:
    """One question, and the table that answers it."""

    folder: str
    title: str
    columns: tuple[Column, ...]
    measure: Callable[[Ground], Rows]
    bars: str
    """The column that the figure shows."""

    @property
    def path(self) -> Path:
        return HERE / self.folder

    def expected(self) -> dict[str, Rows]:
        """Rows by size, as they are checked in."""
        file = self.path / EXPECTED
        found: dict[str, Rows] = json.loads(file.read_text()) if file.exists() else {}
        return found

    def write(self, size: Size, rows: Rows, *, measured: bool = False) -> None:
        """Checks in what was found, and shows the largest size there is in the README. What is of
        the machine stays as it is written, but where it was `measured` to be written."""
        written = self.expected()
        if not measured:
            rows = without_measured(self.columns, rows, written.get(size.value, {}))
        by_size = written | {size.value: rounded(self._kept(size, rows))}
        ordered = {one.value: by_size[one.value] for one in Size if one.value in by_size}
        (self.path / EXPECTED).write_text(json.dumps(ordered, indent=1) + "\n")
        readme = self.path / README
        pattern = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
        readme.write_text(pattern.sub(lambda _: self.page_table(), readme.read_text()))

    def _kept(self, size: Size, rows: Rows) -> Rows:
        """Of tiny runs only what is compared."""
        left = {
            one.name
            for one in self.columns
            if size is Size.TINY and (one.measured or not one.compared)
        }
        return {
            row: {name: cell for name, cell in cells.items() if name not in left}
            for row, cells in rows.items()
        }

    def page_table(self) -> str:
        """The README's table, with the marks around it."""
        by_size = self.expected()
        largest = next(one for one in reversed(Size) if one.value in by_size)
        told = f"Of a {largest} run (`python -m experiments {self.folder} --size {largest}`):"
        table = markdown(self.columns, by_size[largest.value])
        return f"{BEGIN}\n{told}\n\n{table}\n{END}"
