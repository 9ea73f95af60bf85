"""Which prefixes a head holds, as a list that routers follow from wherever they are in it."""

from __future__ import annotations

from collections import deque

from services.common.exchange import PrefixNews
from services.common.prefix import told
from services.engine.backend import BLOCK_SIZE

MAX_TOLD = 1 << 16
"""Blocks that are told of: a million positions; a message of half a MiB."""
MAX_CHANGES = 1 << 13
"""Changes that are kept: who is further behind is told all again."""
UNTOLD = -1
"""Where a reader is that was told nothing yet."""


class PrefixLog:
    """Hashes as they come and go. When there are more than MAX_TOLD, those that come are not told:
    a chain is of use from its beginning on only, and beginnings come first."""

    def __init__(self) -> None:
        self._held: dict[int, None] = {}
        self._changes: deque[tuple[int, bool]] = deque(maxlen=MAX_CHANGES)
        self._position = 0
        """Behind the last change."""

    def add(self, block_hash: bytes) -> None:
        """A block holds this from now on."""
        name = told(block_hash)
        if len(self._held) < MAX_TOLD and name not in self._held:
            self._held[name] = None
            self._note(name, True)

    def remove(self, block_hash: bytes) -> None:
        """No block holds it any more."""
        name = told(block_hash)
        if name in self._held:
            del self._held[name]
            self._note(name, False)

    def _note(self, name: int, held: bool) -> None:
        self._changes.append((name, held))
        self._position += 1

    def since(self, position: int) -> tuple[PrefixNews | None, int]:
        """What has changed since a reader was told up to `position`, and where it is then; None:
        nothing has."""
        first = self._position - len(self._changes)
        if not first <= position <= self._position:
            return PrefixNews(BLOCK_SIZE, True, tuple(self._held)), self._position
        last: dict[int, bool] = {}
        for index in range(position - first, len(self._changes)):
            name, held = self._changes[index]
            last[name] = held
        if not last:
            return None, self._position
        added = tuple(name for name, held in last.items() if held)
        removed = tuple(name for name, held in last.items() if not held)
        return PrefixNews(BLOCK_SIZE, False, added, removed), self._position
