"""The generations that a head holds, by name, with those in view that matter at the moment.

A head holds a thousand that wait, and as many that have ended and are kept for readers that come
back. Only few of them have something to tell at a time: these are found without a look at the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, ValuesView

from services.engine.core.held import HeldGeneration, Life


class HeldIndex(Mapping[str, HeldGeneration]):
    """Whoever changes one says so by `changed`."""

    def __init__(self) -> None:
        self._held: dict[str, HeldGeneration] = {}
        self._open: set[str] = set()
        self._unjournaled: set[str] = set()
        self._owing: dict[str, HeldGeneration] = {}
        """In the order in which they came to owe something."""

    def __getitem__(self, name: str) -> HeldGeneration:
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def open(self) -> int:
        """How many are queued or running."""
        return len(self._open)

    @property
    def unjournaled(self) -> int:
        """Of how many the journal has yet to answer for something."""
        return len(self._unjournaled)

    @property
    def owing(self) -> ValuesView[HeldGeneration]:
        """Those that have something for the journal, or wait for its answer."""
        return self._owing.values()

    def put(self, held: HeldGeneration) -> None:
        """A new one, in the place of an earlier epoch's if there is one."""
        self._held[held.request.generation_id] = held
        self.changed(held)

    def remove(self, name: str) -> None:
        """It is held no more."""
        del self._held[name]
        self._open.discard(name)
        self._unjournaled.discard(name)
        self._owing.pop(name, None)

    def changed(self, held: HeldGeneration) -> None:
        """Its life, its ids, or what the journal has of it; one that was replaced counts no
        more."""
        name = held.request.generation_id
        if self._held.get(name) is not held:
            return
        _file(self._open, name, held.life in (Life.LIVE, Life.SEALING))
        _file(self._unjournaled, name, not held.journal_done)
        if held.owes:
            self._owing[name] = held
        else:
            self._owing.pop(name, None)


def _file(names: set[str], name: str, belongs: bool) -> None:
    if belongs:
        names.add(name)
    else:
        names.discard(name)
