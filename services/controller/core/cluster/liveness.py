"""Which processes live and which heads serve: beats in, verdicts out.

A slow head is not a dead one, and a beat alone is no life: a head serves while its beats come and
show rising steps, or that there is nothing to make steps for. This is the one place that judges
so: readers that miss their frames ask, and move only when the answer is here that their head does
not serve.

Time counts only as far as it was watched. Whoever was stopped has heard nobody, so what passed
before the next look, but for `glance_s`, is nobody's silence: all times here are on a clock that
stands still meanwhile. Behind a longer gap, as behind a restart, nobody counts as dead for a while.

Where there are many processes each is told to beat more seldom, so that their controller can hear
them all; whoever was told so is late, and silent, by that much later.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count
from math import inf

from services.common.errors import NotFound
from services.common.nodes import ASKED_BEATS
from services.common.notices import NoticeKind
from services.controller.core.cluster.actions import Beat
from services.controller.core.cluster.settings import ClusterSettings

_STRANGE_BEATS = 2
"""One beat may have been on its way while the formation changed."""
_AHEAD_S = 0.5
"""Whoever is looked at soon is looked at now: a thousand that beat are one look, not a thousand."""


@dataclass(frozen=True, slots=True)
class Silent:
    """It was silent for so long that it is lost."""

    node_id: str


@dataclass(frozen=True, slots=True)
class Stalled:
    """The head does not serve."""

    node_id: str
    cause: str


@dataclass(frozen=True, slots=True)
class Serves:
    """A head that had stalled serves again."""

    node_id: str


@dataclass(frozen=True, slots=True)
class Strays:
    """It says that it is in this formation (in none, where the id is empty), again and again, and
    it should be in another one, or in none."""

    node_id: str
    formation_id: str


@dataclass(frozen=True, slots=True)
class Misses:
    """It cannot reach these, and is in a formation that stands."""

    node_id: str
    missed_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Departs:
    """Its process was told to stop and will have ended by then."""

    node_id: str
    in_s: float
    kind: NoticeKind


@dataclass(frozen=True, slots=True)
class Advised:
    """It was told that it is likely to be taken away."""

    node_id: str


Verdict = Silent | Stalled | Serves | Strays | Misses | Departs | Advised


@dataclass(slots=True, eq=False)
class _Pulse:
    """A process. Times are on the watched clock."""

    node_id: str
    incarnation: str
    heard_s: float
    stepped_s: float
    """When a beat last showed more steps, or no work."""
    confirmed: bool
    """Heard from since the controller started."""
    spaced_s: float = 0.0
    """What it was told to wait from beat to beat beyond the regular interval."""
    carries: bool = False
    """It holds a stage."""
    formation_id: str | None = ""
    """Which it is in: none when empty, one that does not stand yet when None."""
    leads: bool = False
    stalled: bool = False
    steps: int = 0
    sampled: int = 0
    """Tokens."""
    has_work: bool = False
    advised: bool = False
    """It has said so."""
    strange_beats: int = 0
    """In a row."""
    due_s: float = inf
    """When it is looked at next; silence is judged no later."""


class Liveness:
    """Beats in, verdicts out."""

    def __init__(self, settings: ClusterSettings, now_s: float, *, grace_s: float = 0.0) -> None:
        """Nobody counts as dead for `grace_s`."""
        self._settings = settings
        self._pulses: dict[str, _Pulse] = {}
        """By incarnation."""
        self._due: list[tuple[float, int, _Pulse]] = []
        """A heap: who is to be looked at, and when. An entry counts if it has its pulse's time."""
        self._order = count()
        self._unwatched_s = 0.0
        """So far."""
        self._looked_s = now_s
        self._grace_until_s = now_s + grace_s

    # Who is watched

    def watch(self, node_id: str, incarnation: str, now_s: float, *, confirmed: bool) -> None:
        """A process is there, as it says itself or (not `confirmed`) as an older controller had
        it."""
        watched_s = self._notice(now_s)
        pulse = self._pulses.get(incarnation)
        if pulse is None:
            pulse = _Pulse(node_id, incarnation, watched_s, watched_s, confirmed)
            self._pulses[incarnation] = pulse
        pulse.heard_s, pulse.confirmed = watched_s, confirmed
        self._expect(pulse)

    def forget(self, incarnation: str) -> None:
        """It is lost."""
        pulse = self._pulses.pop(incarnation, None)
        if pulse is not None:
            pulse.due_s = inf  # its entry counts no more

    def carry(self, incarnation: str, carries: bool) -> None:
        """It holds a stage, or none any more."""
        pulse = self._pulses.get(incarnation)
        if pulse is not None:
            pulse.carries = carries
            self._expect(pulse)

    def belong(
        self, incarnation: str, formation_id: str | None, now_s: float, *, leads: bool = False
    ) -> None:
        """It is in this formation, in none (empty), or in one that does not stand yet (None)."""
        pulse = self._pulses.get(incarnation)
        if pulse is None:
            return
        pulse.formation_id, pulse.leads = formation_id, leads
        pulse.stalled, pulse.strange_beats = False, 0
        pulse.stepped_s = max(pulse.stepped_s, self._watched_s(now_s))
        self._expect(pulse)

    def tell_interval_s(self, incarnation: str) -> float:
        """How often it is to beat from now on. Asked when it is told so: its beats are expected
        accordingly."""
        interval_s = self._interval_s
        pulse = self._pulses.get(incarnation)
        if pulse is not None:
            pulse.spaced_s = interval_s - self._settings.heartbeat_interval_s
            self._expect(pulse)
        return interval_s

    @property
    def _interval_s(self) -> float:
        """Of the beats that are wanted of each."""
        regular_s = self._settings.heartbeat_interval_s
        return max(regular_s, len(self._pulses) / self._settings.beats_per_s)

    def _spaced_s(self, pulse: _Pulse) -> float:
        """How much later than where beats are regular it may be heard. Who was not heard yet may
        wait for an older controller, by as many beats as it sends before one is answered."""
        if pulse.confirmed:
            return pulse.spaced_s
        return ASKED_BEATS * (self._interval_s - self._settings.heartbeat_interval_s)

    # What is heard

    def hear(self, beat: Beat, now_s: float) -> list[Verdict]:
        """A sign of life. Raises NotFound for a process that is not watched: it must register."""
        return self.hear_until(beat, now_s, now_s)

    def hear_until(self, beat: Beat, now_s: float, until_s: float) -> list[Verdict]:
        """Beats from now on, all of them like this one, the last at `until_s`: as if each of them
        was heard when it comes."""
        pulse = self._pulses.get(beat.incarnation)
        if pulse is None or pulse.node_id != beat.node_id:
            raise NotFound("register first", field="node_id")
        watched_s = self._notice(now_s)
        pulse.heard_s = watched_s + (until_s - now_s)
        pulse.confirmed, pulse.sampled = True, beat.sampled_tokens
        pulse.has_work = beat.has_work
        if beat.steps != pulse.steps:
            pulse.steps, pulse.stepped_s = beat.steps, watched_s
        if not beat.has_work:
            pulse.stepped_s = pulse.heard_s
        verdicts = list[Verdict]()
        if pulse.stalled and not self._stall(pulse, watched_s):
            pulse.stalled = False
            verdicts.append(Serves(pulse.node_id))
            self._expect(pulse)
        if beat.departs_in_s is not None:
            kind = beat.notice or NoticeKind.SHUTDOWN
            verdicts.append(Departs(pulse.node_id, beat.departs_in_s, kind))
        elif beat.notice is not None and beat.notice.is_advice and not pulse.advised:
            pulse.advised = True
            verdicts.append(Advised(pulse.node_id))
        if pulse.formation_id is not None:
            verdicts += self._place(pulse, pulse.formation_id, beat)
        return verdicts

    def _place(self, pulse: _Pulse, formation_id: str, beat: Beat) -> list[Verdict]:
        if beat.formation_id == formation_id:
            pulse.strange_beats = 0
        else:
            pulse.strange_beats += 1
            if pulse.strange_beats >= _STRANGE_BEATS:
                pulse.strange_beats = 0
                return [Strays(pulse.node_id, beat.formation_id)]
        if formation_id and beat.lost_node_ids:
            return [Misses(pulse.node_id, beat.lost_node_ids)]
        return []

    # What is judged

    def look(self, now_s: float) -> list[Verdict]:
        """What is due by now."""
        watched_s = self._notice(now_s)
        if not self._due or self._due[0][0] > watched_s:
            return []
        pulses = []
        while self._due and self._due[0][0] <= watched_s + _AHEAD_S:
            due_s, _, pulse = heapq.heappop(self._due)
            if due_s == pulse.due_s:
                pulse.due_s = inf
                pulses.append(pulse)
        verdicts = [v for pulse in pulses if (v := self._judge(pulse, watched_s)) is not None]
        for pulse in pulses:
            self._expect(pulse)
        return verdicts

    def _judge(self, pulse: _Pulse, watched_s: float) -> Verdict | None:
        if watched_s < self._grace_until_s:
            return None
        silence_s = self._spaced_s(pulse) + self._settings.silence_s(pulse.carries)
        if watched_s >= pulse.heard_s + silence_s:
            return Silent(pulse.node_id)
        if not pulse.leads or pulse.stalled:
            return None
        cause = self._stall(pulse, watched_s)
        pulse.stalled = bool(cause)
        return Stalled(pulse.node_id, cause) if cause else None

    def _stall(self, pulse: _Pulse, watched_s: float) -> str:
        """Why a head does not serve; empty when it does."""
        if watched_s >= pulse.heard_s + self._spaced_s(pulse) + self._settings.stall_s:
            return "silence"
        if watched_s >= pulse.stepped_s + self._spaced_s(pulse) + self._settings.progress_s:
            return "no steps"
        return ""

    def wakes_at_s(self) -> float:
        """When to look next: later than that, time goes by unwatched."""
        while self._due and self._due[0][0] != self._due[0][2].due_s:
            heapq.heappop(self._due)
        due_s = self._due[0][0] + self._unwatched_s if self._due else inf
        return min(due_s, self._looked_s + self._settings.glance_s)

    def _expect(self, pulse: _Pulse) -> None:
        """Has it looked at by when something may be due."""
        settings, spaced_s = self._settings, self._spaced_s(pulse)
        heard_s = pulse.heard_s + spaced_s
        due_s = heard_s + settings.silence_s(pulse.carries)
        if pulse.leads and not pulse.stalled:
            due_s = min(due_s, heard_s + settings.stall_s)
            due_s = min(due_s, pulse.stepped_s + spaced_s + settings.progress_s)
        due_s = max(due_s, self._grace_until_s)
        if due_s < pulse.due_s:
            pulse.due_s = due_s
            heapq.heappush(self._due, (due_s, next(self._order), pulse))

    # Time

    def _notice(self, now_s: float) -> float:
        """Somebody looks; returns the watched time."""
        settings = self._settings
        gap_s = now_s - self._looked_s
        if gap_s > settings.glance_s:
            self._unwatched_s += gap_s - settings.glance_s
            if gap_s >= settings.doubt_s:
                # Who lives need not find the controller anew, as behind a restart.
                grace_s = min(settings.restart_grace_s, settings.node_lost_s)
                grace_until_s = now_s - self._unwatched_s + grace_s
                self._grace_until_s = max(self._grace_until_s, grace_until_s)
        self._looked_s = max(self._looked_s, now_s)
        return self._looked_s - self._unwatched_s

    def _watched_s(self, now_s: float) -> float:
        gap_s = max(0.0, now_s - self._looked_s)
        return self._looked_s + min(gap_s, self._settings.glance_s) - self._unwatched_s

    # What others ask

    def trusts(self, incarnation: str, now_s: float) -> bool:
        """It was heard from just now, by this very controller process."""
        pulse = self._pulses.get(incarnation)
        if pulse is None or not pulse.confirmed:
            return False
        doubt_s = self._spaced_s(pulse) + self._settings.doubt_s
        return self._watched_s(now_s) <= pulse.heard_s + doubt_s

    def silent_s(self, incarnation: str, now_s: float) -> float:
        """For how long it was not heard from."""
        pulse = self._pulses.get(incarnation)
        return max(0.0, self._watched_s(now_s) - pulse.heard_s) if pulse is not None else 0.0

    def has_work(self, incarnation: str) -> bool:
        """Steps should be made there, as its last beat told."""
        pulse = self._pulses.get(incarnation)
        return pulse is not None and pulse.has_work

    def sampled(self, incarnation: str) -> int:
        """Tokens, as its last beat told them."""
        pulse = self._pulses.get(incarnation)
        return pulse.sampled if pulse is not None else 0
