"""Generations whose readers are gone, by what was asked: a client's retry finds its first ask here.

Nothing that is read is ever given to a second reader, and what was given to one retry is not given
to the next: many clients may ask the same at once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Left:
    digest: str
    since_s: float
    free_at_s: float
    """Claimed until then: whoever claimed it is on the way to read it."""


class Abandoned:
    """Those that were left within `window_s`, times in seconds that never fall."""

    def __init__(self, window_s: float, claim_s: float) -> None:
        self._window_s = window_s
        self._claim_s = claim_s
        self._left: dict[str, _Left] = {}
        """By name, in the order in which they were left."""
        self._names: dict[str, dict[str, None]] = {}
        """By digest, likewise."""

    def __len__(self) -> int:
        return len(self._left)

    def left(self, name: str, digest: str, now_s: float) -> None:
        """The generation's last reader is gone; said again, it changes nothing."""
        if digest and name not in self._left:
            self._left[name] = _Left(digest, now_s, now_s)
            self._names.setdefault(digest, {})[name] = None

    def remove(self, name: str) -> None:
        """Somebody reads it, or nobody can any more."""
        left = self._left.pop(name, None)
        if left is None:
            return
        names = self._names[left.digest]
        del names[name]
        if not names:
            del self._names[left.digest]

    def claim(self, digest: str, now_s: float) -> str | None:
        """The one left first, now the caller's; None when there is none."""
        for name in self._names.get(digest, ()):
            left = self._left[name]
            if left.free_at_s <= now_s < left.since_s + self._window_s:
                left.free_at_s = now_s + self._claim_s
                return name
        return None

    def forget(self, now_s: float) -> None:
        """Lets go of what was left too long ago; call it now and then."""
        while self._left:
            name, left = next(iter(self._left.items()))
            if now_s - left.since_s < self._window_s:
                return
            self.remove(name)
