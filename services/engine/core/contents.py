"""Which blocks of a stage's cache hold what, beyond the formation that has it.

The cache of a formation that ends stays for the next one of the same stage and size, and blocks may
lie in that of a stage before its formation begins. What a block holds is known by name until
something is written to it.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.engine.backend import BLOCK_SIZE, SequenceStep
from services.engine.core.blocks import blocks_for
from services.engine.core.incoming import NamedBlock


class Contents:
    """Of one cache."""

    def __init__(self) -> None:
        self._names: dict[int, bytes] = {}
        self._rounded: set[int] = set()
        """Of these blocks, those that came rounded."""

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, named: NamedBlock) -> bool:
        name, block = named
        return self._names.get(block) == name

    @property
    def places(self) -> dict[bytes, int]:
        """A block of each name."""
        return {name: block for block, name in self._names.items()}

    def is_rounded(self, named: NamedBlock) -> bool:
        """It holds what goes by the name, rounded."""
        return named in self and named[1] in self._rounded

    def note(self, blocks: Iterable[NamedBlock]) -> None:
        """They hold what goes by these names."""
        self._names.update((block, name) for name, block in blocks)

    def note_rounded(self, blocks: Iterable[int]) -> None:
        """What these hold came rounded."""
        self._rounded.update(blocks)

    def written(self, blocks: Iterable[int]) -> None:
        """They may hold something else from now on."""
        for block in blocks:
            self._names.pop(block, None)
            self._rounded.discard(block)

    def stepped(self, steps: Iterable[SequenceStep]) -> None:
        """A batch writes its rows."""
        if self._names or self._rounded:
            for step in steps:
                end = blocks_for(step.start + step.count)
                self.written(step.block_table[step.start // BLOCK_SIZE : end])
