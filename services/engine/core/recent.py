"""Values by name that are kept for a while: what a head remembers of generations that are gone."""

from __future__ import annotations

from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """The newest `limit` of them, each for `keep_s`; times given never fall."""

    def __init__(self, keep_s: float, limit: int) -> None:
        self._keep_s = keep_s
        self._limit = limit
        self._kept: dict[str, tuple[V, float]] = {}
        """In the order in which they came."""

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    def get(self, name: str) -> V | None:
        """The value last kept under a name."""
        return self._kept[name][0] if name in self._kept else None

    def keep(self, name: str, value: V, now_s: float) -> None:
        """Keeps a value from now on, in place of one of the same name."""
        self._kept.pop(name, None)
        self._kept[name] = (value, now_s)
        if len(self._kept) > self._limit:
            del self._kept[next(iter(self._kept))]

    def forget(self, now_s: float) -> None:
        """Lets go of what is too old; call it now and then."""
        while self._kept:
            name, (_, since_s) = next(iter(self._kept.items()))
            if now_s - since_s < self._keep_s:
                return
            del self._kept[name]
