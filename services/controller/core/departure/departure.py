"""A formation that has to go by a deadline, while others serve: its generations leave it one by
one, or end there.

The choices are made anew at every look, by what is left of time, link and room then: a link slower
than thought turns pushes into replays. What has been told to stop is not kept again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.controller.core.departure.lengths import AnswerLengths
from services.controller.core.departure.move import Choice, Move, Rates, Stream
from services.controller.core.departure.schedule import schedule

LOOK_S = 0.25
"""Between two looks while something is near: rates change."""

_NEAR_S = 0.01
"""What begins so soon begins now."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look found to do."""

    running: frozenset[str]
    """Generations that go on in the formation; all others are to be sealed."""
    pushes: tuple[Move, ...]
    """Their blocks begin to travel."""
    told: tuple[Move, ...]
    """Chosen for the first time, or otherwise than before."""
    wakes_at_s: float
    """When to look again, if nothing happens before."""


class Departure:
    """Of one formation."""

    def __init__(self, end_s: float, *, always: bool = False) -> None:
        """By `end_s` all have left it; blocks that may travel do `always`, whatever that spares."""
        self.end_s = end_s
        self._always = always
        self._chosen: dict[str, Choice] = {}
        self._stopped: set[str] = set()
        """They are to be sealed, whatever is found later."""
        self._pushing: set[str] = set()

    def look(
        self, streams: Sequence[Stream], rates: Rates, lengths: AnswerLengths, now_s: float
    ) -> Look:
        """`streams` are those that run in the formation as far as is known."""
        streams = [one for one in streams if one.generation_id not in self._stopped]
        self._pushing &= {one.generation_id for one in streams}
        moves = schedule(
            streams,
            rates,
            lengths,
            now_s=now_s,
            end_s=self.end_s,
            before=self._chosen,
            begun=self._pushing,
            always=self._always,
        )
        told = tuple(m for m in moves if self._chosen.get(m.generation_id) is not m.choice)
        self._chosen = {move.generation_id: move.choice for move in moves}
        bytes_left = {one.generation_id: one.bytes for one in streams}
        pushes = []
        for move in moves:
            name = move.generation_id
            if move.choice is not Choice.PUSH:
                self._pushing.discard(name)
            if move.begins_s > now_s + _NEAR_S:
                continue
            if move.choice is not Choice.PUSH or not bytes_left[name]:
                self._stopped.add(name)
            elif name not in self._pushing:
                self._pushing.add(name)
                pushes.append(move)
        last_s = self.end_s - rates.seal_s
        ends_s = (max(m.ends_s, now_s + LOOK_S) for m in moves if m.choice is Choice.FINISH)
        due_s = [*(m.begins_s for m in moves), *ends_s, last_s, self.end_s]
        next_s = min((one for one in due_s if one > now_s + _NEAR_S), default=now_s + _NEAR_S)
        running = frozenset(m.generation_id for m in moves) - self._stopped
        return Look(
            running, tuple(pushes), told, min(next_s, now_s + self._pause_s(next_s - now_s))
        )

    def _pause_s(self, left_s: float) -> float:
        """Half of what is left until something is due; no longer while blocks travel."""
        return LOOK_S if self._pushing else max(LOOK_S, left_s / 2)
