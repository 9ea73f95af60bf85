"""A bound on how many names something is told by: the first so many, and one for all others."""

from __future__ import annotations

OTHER = "other"


class BoundedNames:
    """The first names stay names; what comes when there are `most` is `OTHER`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: set[str] = set()

    def of(self, name: str) -> str:
        """What it is told by."""
        if name in self._names:
            return name
        if len(self._names) >= self._most:
            return OTHER
        self._names.add(name)
        return name
