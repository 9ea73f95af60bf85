"""Processes that can die and freeze, and what goes between them: calls and streams.

A call is a request and a reply, each of which may be lost, late or doubled: so a call may take
effect and time out. A stream keeps its order and loses nothing, but it can break, as TCP does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from services.common.errors import DeadlineExceeded, ShuntError, Unavailable
from simulator.environment.clock import Clock

Reply = Callable[[Any], None]
P = TypeVar("P", bound="Process")
CONNECT_S = (0.004, 0.016)
GIVEN_UP_S = 0.2
"""A connection that does not stand."""


@dataclass(slots=True)
class Trouble:
    """How many of the next messages go astray, and how."""

    lost: int = 0
    late: int = 0
    doubled: int = 0
    half_done: int = 0
    """Replies that are lost: the call took effect."""

    def strikes(self, kind: str, random: Random) -> bool:
        """Whether this message is one of them."""
        left = getattr(self, kind)
        if not left or random.random() < 0.5:
            return False
        setattr(self, kind, left - 1)
        return True


class Process:
    """Something that runs, until it is killed; while it is frozen, what comes waits. Its name is
    its address; whoever is started later under the same one takes its place."""

    def __init__(self, name: str, network: SimulatedNetwork) -> None:
        self.name = name
        self.network = network
        self.clock = network.clock
        self.alive = True
        self.frozen = False
        self.late = False
        """Frozen only because its machine is busy."""
        self.streams: list[Stream] = []
        self.on_exit: Callable[[], None] = lambda: None
        """Told when it is dead, as a parent is."""
        self._waiting: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        network.processes[name] = self

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
        """A timer that comes again; turns missed while frozen are missed, but one that is late."""
        if not self.alive:
            return
        if not self.frozen:
            act()
        elif self.late and (act, ()) not in self._waiting:
            self._waiting.append((act, ()))
        self.clock.after(interval_s, self.every, interval_s, act)

    def freeze(self) -> None:
        """As SIGSTOP does."""
        self.frozen = True

    def lag(self, for_s: float) -> None:
        """A busy machine runs it again only then: what it should do meanwhile is late."""
        if self.alive and not self.frozen:
            self.frozen = self.late = True
            self.clock.after(for_s, self._catch_up)

    def _catch_up(self) -> None:
        if self.late:
            self.thaw()

    def thaw(self) -> None:
        """As SIGCONT does."""
        self.frozen = self.late = False
        waiting, self._waiting = self._waiting, []
        for act, args in waiting:
            self.run(act, *args)

    def kill(self) -> None:
        """As SIGKILL does: the kernel closes its connections."""
        self.alive = self.frozen = self.late = False
        self._waiting = []
        for stream in list(self.streams):
            stream.broken_by(self)
        self.on_exit()

    def call(
        self,
        address: str,
        method: str,
        args: tuple[Any, ...],
        answer: Reply = lambda _: None,
        timeout_s: float = 1.0,
    ) -> None:
        """Asks another process; `answer` gets the reply or an error, once."""
        self.network.call(self, address, method, args, answer, timeout_s)

    def open(self, address: str, method: str, first: Any) -> Stream:
        """A stream to another process, whose method gets it with its first message."""
        return Stream(self.network, self, self.network.processes[address], method, first)


class Call:
    """One call; whoever serves it calls it with the reply."""

    def __init__(
        self, network: SimulatedNetwork, caller: Process, server: Process | None, answer: Reply
    ) -> None:
        self._network = network
        self._caller = caller
        self._server = server
        self._answer: Reply | None = answer
        self._given_up = False

    @property
    def given_up(self) -> bool:
        """Nobody waits for a reply, and none was had."""
        return self._given_up or not self._caller.alive

    def __call__(self, result: Any) -> None:
        network, server = self._network, self._server
        if server is not None and server.alive and network.reaches(self._caller, server):
            if network.strikes("half_done"):
                return
            for delay_s in network.fates():
                self._caller.after(delay_s, self.answered, result)

    def answered(self, result: Any) -> None:
        """The caller hears it, if it is the first."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer(result)

    def give_up(self) -> None:
        """Its time is over."""
        if self._answer is not None:
            self._given_up = True
            self.answered(DeadlineExceeded("no answer in time"))


class SimulatedNetwork:
    """Carries calls and opens streams."""

    def __init__(self, clock: Clock, random: Random) -> None:
        self.clock = clock
        self.random = random
        self.processes: dict[str, Process] = {}
        """By address, dead or alive."""
        self.trouble = Trouble()
        self.cut: set[frozenset[str]] = set()
        """Pairs of processes that do not reach each other."""
        self.overrun: dict[frozenset[str], float] = {}
        """Pairs between which no connection comes to stand in time until then, though both live:
        machines too busy for it."""
        self.struck: Callable[[str], None] = lambda kind: None
        """Told of every message that goes astray."""

    def latency_s(self) -> float:
        """Of one message on a good day."""
        return 0.0005 + 0.002 * self.random.random()

    def overrun_for(self, one: Process, other: Process, for_s: float) -> None:
        """What streams there are between them break, and so does every new one for a while."""
        self.overrun[frozenset((one.name, other.name))] = self.clock.now_s + for_s
        for stream in [s for s in one.streams if other in (s.client, s.server)]:
            stream.break_line()

    def stands(self, one: Process, other: Process) -> bool:
        """A connection between them does."""
        return self.overrun.get(frozenset((one.name, other.name)), 0.0) <= self.clock.now_s

    def reaches(self, one: Process, other: Process) -> bool:
        """No cut between them."""
        return frozenset((one.name, other.name)) not in self.cut

    def process(self, address: str, kind: type[P]) -> P:
        """Who is, or was last, at an address."""
        process = self.processes[address]
        if not isinstance(process, kind):
            raise TypeError(f"{address} is no {kind.__name__}")
        return process

    def living(self, prefix: str) -> list[str]:
        """Addresses that begin so, of processes that live."""
        return [
            name
            for name, process in self.processes.items()
            if process.alive and name.startswith(prefix)
        ]

    def tell(self, address: str, method: str, *args: Any, after_s: float) -> None:
        """What a process hears without having asked: an exit, a closed connection, a watch."""
        self.clock.after(after_s, self._told, address, method, args)

    def _told(self, address: str, method: str, args: tuple[Any, ...]) -> None:
        process = self.processes[address]
        process.run(getattr(process, method), *args)

    def call(
        self,
        caller: Process,
        address: str,
        method: str,
        args: tuple[Any, ...],
        answer: Reply,
        timeout_s: float,
    ) -> None:
        """Runs `method(reply, *args)` at whoever has the address now."""
        server = self.processes.get(address)
        call = Call(self, caller, server, answer)

        def arrive() -> None:
            if server is None or not server.alive:
                refused = Unavailable("connection refused")
                caller.after(self.latency_s(), call.answered, refused)
            elif self.reaches(caller, server):
                server.run(getattr(server, method), call, *args)

        for delay_s in self.fates():
            self.clock.after(delay_s, arrive)
        caller.after(timeout_s, call.give_up)

    def strikes(self, kind: str) -> bool:
        """Whether a message goes astray in this way."""
        strikes = self.trouble.strikes(kind, self.random)
        if strikes:
            self.struck(kind)
        return strikes

    def fates(self, *, reply: bool = False) -> list[float]:
        """When each copy of a message arrives, from now."""
        if self.strikes("lost") or (reply and self.strikes("half_done")):
            return []
        copies = 2 if self.strikes("doubled") else 1
        return [
            self.latency_s() + (self.random.random() if self.strikes("late") else 0.0)
            for _ in range(copies)
        ]


class Stream:
    """A bidirectional stream between two processes; messages stay in order."""

    def __init__(
        self,
        network: SimulatedNetwork,
        client: Process,
        server: Process,
        method: str,
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
        if server.alive and not network.stands(client, server):
            client.after(GIVEN_UP_S, self.break_line)
        elif server.alive:
            delay_s = network.random.uniform(*CONNECT_S)
            self._last_s[server] = network.clock.now_s + delay_s
            server.after(delay_s, self._accept, getattr(server, method), first)
        else:
            self._push(client, self._end, client, Unavailable("connection refused"))

    def _accept(self, accept: Callable[[Stream, Any], None], first: Any) -> None:
        if not self._broken and self.network.reaches(self.client, self.server):
            accept(self, first)

    def send(self, sender: Process, message: Any) -> None:
        """To the other end; nothing once the stream has ended."""
        receiver = self.server if sender is self.client else self.client
        if self in sender.streams:
            self._push(receiver, self._hand, receiver, message)

    def post(self, sender: Process, message: Any) -> None:
        """As send, but like the messages of calls it may be lost, late or doubled."""
        receiver = self.server if sender is self.client else self.client
        if self in sender.streams and self.network.reaches(self.client, self.server):
            for delay_s in self.network.fates(reply=sender is self.server):
                receiver.after(delay_s, self._hand, receiver, message)

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
