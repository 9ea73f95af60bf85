"""Processes that can die and freeze, and what goes between them: calls and streams.

A call is a request and a reply, each of which may be lost, late or doubled: so a call may take
effect and time out. A stream keeps its order and loses nothing, but it can break, as TCP does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from services.common.errors import DeadlineExceeded, ShuntError, Unavailable
from simulator.clock import Clock

Reply = Callable[[Any], None]


@dataclass(slots=True)
class Weather:
    """Chances for a message of a call."""

    lost: float = 0.0
    late: float = 0.0
    doubled: float = 0.0
    late_s: float = 1.0
    """Most that a late one is late by."""


class Process:
    """Something that runs, until it is killed; while it is frozen, what comes waits."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.alive = True
        self.frozen = False
        self.streams: list[Stream] = []
        self._waiting: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def run(self, act: Callable[..., None], *args: Any) -> None:
        """Does something inside this process."""
        if self.frozen:
            self._waiting.append((act, args))
        elif self.alive:
            act(*args)

    def after(self, delay_s: float, act: Callable[..., None], *args: Any) -> None:
        """A timer of this process."""
        self.clock.after(delay_s, self.run, act, *args)

    def every(self, interval_s: float, act: Callable[[], None]) -> None:
        """A timer that comes again; turns missed while frozen are missed."""
        if not self.alive:
            return
        if not self.frozen:
            act()
        self.clock.after(interval_s, self.every, interval_s, act)

    def freeze(self) -> None:
        """As SIGSTOP does."""
        self.frozen = True

    def thaw(self) -> None:
        """As SIGCONT does."""
        self.frozen = False
        waiting, self._waiting = self._waiting, []
        for act, args in waiting:
            self.run(act, *args)

    def kill(self) -> None:
        """As SIGKILL does: the kernel closes its connections."""
        self.alive = self.frozen = False
        self._waiting = []
        for stream in list(self.streams):
            stream.broken_by(self)


class Network:
    """Carries calls and opens streams."""

    def __init__(self, clock: Clock, random: Random) -> None:
        self.clock = clock
        self.random = random
        self.weather = Weather()
        self.cut: set[frozenset[str]] = set()
        """Pairs of processes that do not reach each other."""
        self.lost = self.late = self.doubled = self.half_done = 0

    def latency_s(self) -> float:
        """Of one message on a good day."""
        return 0.0005 + 0.002 * self.random.random()

    def reaches(self, one: Process, other: Process) -> bool:
        """No cut between them."""
        return frozenset((one.name, other.name)) not in self.cut

    def call(
        self,
        caller: Process,
        server: Process | None,
        serve: Callable[..., None],
        args: tuple[Any, ...],
        answer: Reply,
        timeout_s: float = 1.0,
    ) -> None:
        """Runs `serve(reply, *args)` at the server; `answer` gets the reply or an error, once."""
        answered = False
        served = False

        def once(result: Any) -> None:
            nonlocal answered
            if not answered:
                answered = True
                answer(result)

        def time_out() -> None:
            self.half_done += served and not answered
            once(DeadlineExceeded("no answer in time"))

        def reply(result: Any) -> None:
            if server is not None and server.alive and self.reaches(caller, server):
                self._deliver(caller, once, result)

        def arrive() -> None:
            nonlocal served
            if server is None or not server.alive:
                caller.after(self.latency_s(), once, Unavailable("connection refused"))
            elif self.reaches(caller, server):
                served = True
                server.run(serve, reply, *args)

        self._deliver(None, arrive)
        caller.after(timeout_s, time_out)

    def _deliver(self, receiver: Process | None, act: Callable[..., None], *args: Any) -> None:
        weather, random = self.weather, self.random
        if random.random() < weather.lost:
            self.lost += 1
            return
        copies = 1
        if random.random() < weather.doubled:
            self.doubled += 1
            copies = 2
        for _ in range(copies):
            delay_s = self.latency_s()
            if random.random() < weather.late:
                self.late += 1
                delay_s += weather.late_s * random.random()
            if receiver is None:
                self.clock.after(delay_s, act, *args)
            else:
                receiver.after(delay_s, act, *args)


class Stream:
    """A bidirectional stream between two processes; messages stay in order."""

    def __init__(
        self,
        network: Network,
        client: Process,
        server: Process,
        accept: Callable[[Stream, Any], None],
        first: Any,
    ) -> None:
        self.network = network
        self.client = client
        self.server = server
        self.on_message: dict[Process, Callable[[Any], None]] = {}
        self.on_end: dict[Process, Callable[[ShuntError | None], None]] = {}
        self._last_s = {client: 0.0, server: 0.0}
        self._broken = False
        client.streams.append(self)
        server.streams.append(self)
        if server.alive:
            self._push(server, self._accept, accept, first)
        else:
            self._push(client, self._end, client, Unavailable("connection refused"))

    def _accept(self, accept: Callable[[Stream, Any], None], first: Any) -> None:
        if not self._broken:
            accept(self, first)

    def send(self, sender: Process, message: Any) -> None:
        """To the other end; nothing once the stream has ended."""
        receiver = self.server if sender is self.client else self.client
        if self in sender.streams:
            self._push(receiver, self._hand, receiver, message)

    def _hand(self, receiver: Process, message: Any) -> None:
        if receiver in self.on_message and not self._broken:
            self.on_message[receiver](message)

    def _push(self, receiver: Process, act: Callable[..., None], *args: Any) -> None:
        if not self.network.reaches(self.client, self.server):
            return
        clock = self.network.clock
        at_s = max(clock.now_s + self.network.latency_s(), self._last_s[receiver])
        self._last_s[receiver] = at_s
        receiver.after(at_s - clock.now_s, act, *args)

    def close(self, closer: Process, error: ShuntError | None = None) -> None:
        """Ends it; the other end hears of it behind what was sent before."""
        other = self.server if closer is self.client else self.client
        if self in closer.streams:
            self._forget(closer)
            self._push(other, self._end, other, error)

    def broken_by(self, dead: Process) -> None:
        """One end died, or the line did."""
        for end in (self.client, self.server):
            if end is dead:
                self._forget(end)
            else:
                self._push(end, self._end, end, Unavailable("connection lost"))

    def break_line(self) -> None:
        """Both ends hear of it; what was under way is lost."""
        self._broken = True
        for end in (self.client, self.server):
            self._push(end, self._end, end, Unavailable("connection lost"))

    def _end(self, end: Process, error: ShuntError | None) -> None:
        if self in end.streams:
            self._forget(end)
            if end in self.on_end:
                self.on_end[end](error)

    def _forget(self, end: Process) -> None:
        if self in end.streams:
            end.streams.remove(self)
        self.on_message.pop(end, None)
