"""Responses of the background: whoever was told an id finds its answer, whoever is gone.

Clients ask for responses that are to run though nobody reads them, some as streams. They leave
before they are told an id or behind it, come back and ask for what there is, or for the events
behind the last number they had, at any router; they cancel, and delete. Meanwhile heads, routers
and controllers die, some together, nodes freeze or are told to go, lines break and messages go
astray; and what has ended leaves the journal's memory for its store. oracle_responses.py has what
must hold. `python background.py FIRST COUNT PATIENCE` prints the first violation.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from oracle_responses import ENDS, ResponseOracle
from seeds import program
from watch import judged

from services.common.errors import (
    Cancelled,
    FailedPrecondition,
    NotFound,
    OutOfRange,
    ShuntError,
)
from services.common.exchange import GenerationState, GenerationView
from services.common.generation import GenerationRequest, Sampling, TokenLogprob
from services.router.openai.responses.details import Details, terms_of
from services.router.openai.responses.events import ResponseEvents
from simulator.environment.addresses import ROUTERS
from simulator.environment.network import Process, Stream, Trouble
from simulator.environment.settings import MODEL, SimulationSettings
from simulator.processes.engine import SimulatedEngine
from simulator.processes.stages import VOCABULARY
from simulator.world import World

ASKED_S = 2.0
"""From here on clients come, for as long."""
TROUBLED_S = 9.0
"""Behind it nothing happens any more, but what is under way."""
END_S = 120.0
QUIET_S = 25.0
"""Within which what has ended is stored, and heads forget it."""
LOOK_S = 3.0
"""The longest that a client waits for an answer."""
LOOKS_AGAIN = 4
"""How often a client asks for what it knows to have ended."""
LENGTHS = (1, 20, 60, 150)
TROUBLES = (
    *("kill", "kill", "both", "both", "router", "router", "crash"),
    *("freeze", "notice", "break", "deaf", "astray"),
)
_ID = re.compile(r"^id: (\d+):(\S+)$", re.MULTILINE)
TERMS = terms_of(Details({}, []), store=True, background=True)


class Asker(Process):
    """A client that asks for one response, and for what became of it."""

    def __init__(self, schedule: ResponseSchedule, request: GenerationRequest) -> None:
        environment = schedule.world.environment
        super().__init__(f"client/{request.generation_id}", environment.network)
        self.request = request
        self.log = b""
        self.named = self.whole = False
        self.cancelled = self.deleting = self.deleted = False
        self._oracle, self._random = schedule.oracle, schedule.random
        self._streams = self._random.random() < 0.4
        """It reads while it asks."""
        self._reads = self._random.random() < 0.6
        """It comes back for events, and not for the whole alone."""
        self._impatient = self._random.random() < 0.15
        self._gone = self._random.random() < 0.25
        """It never comes back."""
        self._looks = LOOKS_AGAIN
        """That are left once it has ended."""
        self._number, self._position = -1, ""
        """Of the last event it had, and the ids that its id names."""
        self._ended = False
        """As far as it was told."""
        self._events: ResponseEvents | None = None
        self._stream: Stream | None = None
        self._ask()

    def _any_router(self) -> str | None:
        routers = self.network.living(ROUTERS)
        return self._random.choice(routers) if routers else None

    def _ask(self) -> None:
        router = self._any_router()
        if router is None:
            self.after(0.2, self._ask)
            return
        self._follow(router, "generate", (self.request, False))
        if self._impatient:
            self.after(0.02 * self._random.random(), self._leave)

    def _begin_anew(self) -> None:
        self.log, self._number, self._position = b"", -1, ""

    def _follow(self, router: str, method: str, first: Any) -> None:
        after = self._number if self._number >= 0 else None
        self._events = ResponseEvents(self.request, VOCABULARY, after)
        self._stream = stream = self.open(router, method, first)
        stream.on_message[self] = self._message
        stream.on_end[self] = self._line_ended

    def _leave(self) -> None:
        if self._stream in self.streams:
            self._oracle.happened["left unnamed"] += not self.named
            self._stream.close(self)
            self._stream = None
            self._over()

    def _message(self, message: tuple[Any, ...]) -> None:
        if message[0] == "named":
            self._is_named()
        elif message[0] == "had":
            self._read(message[1].ids, message[1].logprobs, message[1].cached_tokens)
        elif message[0] == "delta":
            self._read(message[1].ids, message[1].logprobs, message[2])
            if self._random.random() < 0.02 and self.named:
                self._oracle.happened["hung up"] += 1
                self._leave()
        elif message[0] == "end":
            self._oracle.stream_ended(self, message[1])
            if isinstance(message[1], FailedPrecondition | OutOfRange):
                self._oracle.happened["had ids that are gone"] += 1
                self._begin_anew()
            self._ended |= isinstance(message[1], Cancelled | NotFound)

    def _read(self, ids: Sequence[int], logprobs: Sequence[TokenLogprob], cached: int) -> None:
        assert self._events is not None
        data = self._events.feed(ids, logprobs, cached)
        if not data:
            return
        self.log += data
        number, self._position = _ID.findall(self.log.decode())[-1]
        self._number = int(number)
        whole = any(end in self.log for end in ENDS)
        if whole and not self.whole and self._random.random() < 0.3:
            self._oracle.happened["cancelled behind its end"] += 1
            self._cancel(behind_its_end=True)
        self.whole = whole
        self._oracle.read(self)

    def _is_named(self) -> None:
        if not self.named:
            self.named = True
            self._oracle.happened["named"] += 1
            if self._random.random() < 0.15:
                self.after(4.0 * self._random.random(), self._cancel)
            if self._random.random() < 0.15:
                self.after(8.0 * self._random.random(), self._delete)
        if not self._streams:
            self._leave()

    def _line_ended(self, _: ShuntError | None) -> None:
        self._stream = None
        self._over()

    def _over(self) -> None:
        """Of one connection; who was told an id comes back, if it ever does."""
        if not self.named or self._gone or not self._looks:
            return
        has_ended = self.whole or self._ended
        self._looks -= has_ended
        self.after((20.0 if has_ended else 1.5) * self._random.random(), self._look)

    def _look(self) -> None:
        router = self._any_router()
        if self._stream is not None:
            return
        if router is None:
            self._over()
        elif self._reads and self._random.random() < 0.6:
            by_ids = not self._oracle.exact or self._random.random() < 0.5
            by = "ids" if by_ids else "number"
            self._oracle.happened[f"read on by {by}"] += self._number >= 0
            seen = self._position if by_ids else ""
            self._follow(router, "rejoin", (self.request.generation_id, seen))
        else:
            self.call(router, "retrieve", (self.request.generation_id,), self._found, LOOK_S)

    def _found(self, view: GenerationView | ShuntError) -> None:
        self._oracle.found(self, view)
        if isinstance(view, GenerationView):
            self._oracle.happened["found"] += 1
            self._ended = view.state is not GenerationState.OPEN
        self._over()

    def _cancel(self, *, behind_its_end: bool = False) -> None:
        """What has ended stays as it is."""
        router = self._any_router()
        if router is None:
            return
        name = self.request.generation_id

        def known(view: GenerationView | ShuntError) -> None:
            self._oracle.found(self, view)
            if isinstance(view, GenerationView) and view.state is GenerationState.OPEN:
                self.cancelled |= not behind_its_end
                self._oracle.happened["cancelled"] += 1
                self.call(router, "cancel", (name,))

        self.call(router, "retrieve", (name,), known, LOOK_S)

    def _delete(self) -> None:
        router = self._any_router()
        if router is not None:
            self.deleting = True
            name = self.request.generation_id
            self.call(router, "delete", (name,), self._is_deleted, LOOK_S)

    def _is_deleted(self, answer: ShuntError | None) -> None:
        self.deleted = not isinstance(answer, ShuntError)
        self._oracle.happened["deleted"] += self.deleted


class ResponseSchedule:
    """One world whose clients need not stay."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        settings = SimulationSettings(exact=seed % 3 > 0, claims=True)
        settings = replace(
            settings,
            ledger=replace(settings.ledger, kept_after_s=2.0, claim_s=2.0),
            scheduler=replace(settings.scheduler, max_sequences=random.choice((1, 2, 4))),
            exits_seen=random.random() < 0.5,
        )
        self.oracle = ResponseOracle(exact=settings.exact)
        self.world = World(random, settings, self.oracle)
        self.oracle.world = self.world
        self.askers: list[Asker] = []
        for number in range(random.randint(2, 6)):
            self.world.clock.after(ASKED_S * (1 + random.random()), self._arrive, number)
        for _ in range(random.randint(1, 4)):
            at_s = ASKED_S + (TROUBLED_S - ASKED_S) * random.random()
            self.world.clock.after(at_s, self._strike, random.choice(TROUBLES))

    def _arrive(self, number: int) -> None:
        random = self.random
        sampling = Sampling(
            max_tokens=random.choice(LENGTHS),
            seed=number,
            eos_token_ids=(2,),
            ignore_eos=random.random() < 0.7,
        )
        prompt = tuple(random.randrange(1000) for _ in range(random.choice((1, 20, 40))))
        request = GenerationRequest(f"r{number}", MODEL, prompt, sampling, response=TERMS)
        self.askers.append(Asker(self, request))

    # Troubles

    def _strike(self, trouble: str) -> None:
        random, world = self.random, self.world
        placed = [engine for engine in world.engines if engine.place and not engine.frozen]
        heads = [e for e in placed if e.batching.lead is not None and e.core.open_generations]
        victim: SimulatedEngine | None = None
        if placed:
            victim = random.choice(heads if heads and random.random() < 0.8 else placed)
        self.oracle.note("trouble", trouble, victim and victim.name)
        self.oracle.happened[trouble] += 1
        if trouble == "crash":
            world.crash_controller(0.2 + 2.0 * random.random())
        elif trouble == "astray":
            setattr(world.network.trouble, random.choice(tuple(Trouble.__slots__)), 3)
        if trouble in ("router", "both"):
            self._crash_a_reader(victim)
        if victim is None:
            return
        if trouble in ("kill", "both"):
            victim.kill()
        elif trouble == "notice":
            world.provider.notice(victim.node_id, random.choice((0.3, 1.5, 4.0)), taken=True)
        elif trouble == "freeze":
            victim.freeze()
            world.clock.after(0.3 + 3.0 * random.random(), victim.thaw)
        elif trouble == "break":
            world.network.overrun_for(random.choice(world.routers), victim, 0.5 + random.random())
        elif trouble == "deaf" and victim._journal is not None:
            victim._journal.break_line()

    def _crash_a_reader(self, head: SimulatedEngine | None) -> None:
        """A router that follows what runs there, if one does."""
        routers = [router for router in self.world.routers if router.alive]
        following = [
            router
            for router in routers
            if any(
                f.follower.route is not None
                and head is not None
                and f.follower.route.incarnation == head.name
                for f in router.followings
            )
        ]
        if routers:
            away_s = 0.5 + 2.0 * self.random.random()
            self.world.crash_router(self.random.choice(following or routers), away_s)

    # The whole

    def run(self) -> None:
        """Raises Violation."""
        judged(self._run)

    def _run(self) -> None:
        world, oracle = self.world, self.oracle

        def done() -> bool:
            return not any(map(oracle.open, self.askers))

        world.clock.run(TROUBLED_S)
        world.network.trouble = Trouble()
        world.clock.run(END_S, done)
        oracle.check_responses(self.askers)
        world.clock.run(world.clock.now_s + QUIET_S, oracle.serves)
        world.clock.run(world.clock.now_s + QUIET_S)
        oracle.check_serves()
        oracle.check_responses(self.askers)
        world.crash_controller(0.2)  # and the next one finds what was stored
        world.clock.run(world.clock.now_s + 4 * QUIET_S)
        oracle.check_responses(self.askers)
        oracle.check_rest()


def _happened(schedule: ResponseSchedule) -> Counter[str]:
    return schedule.oracle.happened


if __name__ == "__main__":
    program(ResponseSchedule, _happened)
