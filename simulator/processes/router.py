"""A simulated router: the production follower, transcript and balancer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from services.common.errors import DeadlineExceeded, ResourceExhausted, ShuntError, Unavailable
from services.common.exchange import (
    Closed,
    Frame,
    GenerationState,
    GenerationView,
    Left,
    PrefixNews,
    ResumeQuestion,
    Route,
)
from services.common.generation import CancelReason, GenerationRequest
from services.engine.core.prefix_log import UNTOLD
from services.router.core.actions import (
    Action,
    AskResume,
    CloseStream,
    OpenStream,
    SendCancel,
    SendDetach,
)
from services.router.core.balancer import Balancer
from services.router.core.follower import Follower
from services.router.core.hearing import Hearing
from services.router.core.prefixes import PrefixIndex, holder_of
from services.router.core.reading import Reading
from services.router.core.transcript import Position, Transcript
from simulator.environment.addresses import CONTROLLER
from simulator.environment.environment import Environment
from simulator.environment.network import Process, Stream
from simulator.processes.stages import VOCABULARY

TICK_S = 0.25
CLAIM_EVERY_S = 1.0
CLAIMED_AT_ONCE = 32
MAX_UNREAD_BYTES = 1024
WRITE_TIMEOUT_S = 2.0
END_LOOK_S = 0.02
END_WAIT_S = 10.0
"""For the journal to know an end that is told."""


class RouterMonitor(Protocol):
    """Sees what a router hears and asks."""

    def asked(self, question: ResumeQuestion) -> None: ...
    def frame(self, follower: Follower, frame: Frame) -> None: ...


class Cached(Protocol):
    """Says what a router was not told yet of what a head has cached, and where it is then."""

    def __call__(
        self, router: Process, route: Route, position: int
    ) -> tuple[PrefixNews | None, int]: ...


class Following:
    """One client's stream, at the edge; nobody's, where what runs unread is read on."""

    def __init__(
        self,
        router: SimulatedRouter,
        client: Stream | None,
        request: GenerationRequest,
        after: Position | None,
    ) -> None:
        self.router = router
        self.client = client
        environment = router.environment
        self.follower = Follower(request, environment.settings.follower, environment.draw_id())
        self.follower.for_nobody = client is None
        self.transcript = Transcript(request, self.follower.runs, VOCABULARY, after)
        self.reading = Reading(
            self.follower,
            self.transcript,
            router.balancer,
            router.hearing,
            max_unread_bytes=MAX_UNREAD_BYTES,
        )
        self.accepted = False
        """The present stream to a head has answered."""
        self.whole = False
        """Its client wants one answer in the end, and has nothing to come back by before."""
        self.named = False
        """Its client knows what to ask for."""
        self._told_had = after is None
        self._looks_for_end = self._end_is_known = False
        self._streams: dict[int, Stream] = {}
        self._writing_s: float | None = None
        """Since when its client does not read."""

    def perform(self, actions: Sequence[Action]) -> None:
        """Does what the follower asks."""
        self.do(self.reading.perform(actions))

    def do(self, actions: Sequence[Action]) -> None:
        """Does what is left for the edge."""
        for action in actions:
            if isinstance(action, OpenStream):
                self._open(action)
            elif isinstance(action, CloseStream):
                stream = self._streams.pop(action.stream, None)
                if stream is not None:
                    stream.close(self.router)
            elif isinstance(action, AskResume):
                self.router.ask(self, action)
            elif isinstance(action, SendCancel):
                self.router.send_cancel(action)
            elif isinstance(action, SendDetach):
                self.router.send_detach(action)
        if actions:
            self._tell()

    def _open(self, action: OpenStream) -> None:
        router, number = self.router, action.stream
        stream = router.open(action.route.incarnation, "generate", action.call)
        self.accepted = False

        def frame(message: Frame) -> None:
            self.accepted = True
            router.monitor.frame(self.follower, message)
            if isinstance(message, Closed):
                stream.close(router)
            self.perform(self.reading.frame(number, message, router.clock.now_s))

        def ended(error: ShuntError | None) -> None:
            self.reading.left(number)
            if error is not None:
                self.perform(self.follower.broken(number, error, router.clock.now_s))

        stream.on_message[router] = frame
        stream.on_end[router] = ended
        self._streams[number] = stream

    def tick(self) -> None:
        """Lets a client go that has taken nothing for long; it can come back."""
        now_s = self.router.clock.now_s
        self.do(self.reading.tick(now_s))
        if self._writing_s is not None and now_s - self._writing_s >= WRITE_TIMEOUT_S:
            self.do(self.reading.fail(ResourceExhausted("the client does not read")))
        self._tell()

    def keep(self) -> None:
        """Its client is gone, and it is read on."""
        self.client, self.follower.for_nobody = None, True
        self._tell()

    def _tell(self) -> None:
        """As far as the client takes it."""
        if self.client is None:
            self._writing_s, self.reading.writing = None, False
            self.transcript.take()
            if self.reading.ended and self in self.router.followings:
                self.router.followings.remove(self)
            return
        slow = self.client.client.frozen
        self._writing_s = (self._writing_s or self.router.clock.now_s) if slow else None
        self.reading.writing = slow
        if isinstance(self.reading.error, ResourceExhausted):
            if self in self.router.followings:
                self.router.followings.remove(self)
                self.client.close(self.router, self.reading.error)
            return
        if slow:
            return
        if self.follower.epoch and not self.named:
            self.named = True
            if self.follower.request.runs_unread:
                self.client.send(self.router, ("named",))
        ended_well = self.reading.ended and self.reading.error is None
        if self._is_stored and ended_well and not self._end_is_known:
            self._look_for_end(self.router.clock.now_s + END_WAIT_S)
            return
        if self._is_stored and self.transcript.caught_up and not self._told_had:
            self._told_had = True
            self.client.send(self.router, ("had", self.transcript.had(0)))
        for delta in self.transcript.take():
            cached = self.transcript.usage.cached_tokens
            self.client.send(self.router, ("delta", delta, cached))
        if self.reading.ended and self in self.router.followings:
            self.router.followings.remove(self)
            usage, end_id = None, ""
            if self.reading.owes_usage:
                usage, end_id = self.transcript.usage, self.transcript.end_id()
            self.client.send(self.router, ("end", self.reading.error, usage, end_id))
            self.client.close(self.router)

    @property
    def _is_stored(self) -> bool:
        terms = self.follower.request.response
        return terms is not None and terms.store

    def _look_for_end(self, until_s: float) -> None:
        """Nobody is told the end of what is stored before the journal knows it."""
        if self._looks_for_end:
            return
        self._looks_for_end = True
        router, name = self.router, self.follower.request.generation_id

        def look() -> None:
            router.call(CONTROLLER, "view", (name,), viewed, END_WAIT_S)

        def viewed(view: GenerationView | ShuntError) -> None:
            is_open = not isinstance(view, GenerationView) or view.state is GenerationState.OPEN
            if is_open and router.clock.now_s < until_s:
                router.after(END_LOOK_S, look)
                return
            self._end_is_known = True
            self._tell()

        look()


class SimulatedRouter(Process):
    """One replica."""

    def __init__(
        self, environment: Environment, monitor: RouterMonitor, name: str, cached: Cached
    ) -> None:
        super().__init__(name, environment.network)
        self._cached = cached
        self.environment = environment
        self.monitor = monitor
        self.balancer = Balancer()
        self.hearing = Hearing(2 * TICK_S)
        self.prefixes = PrefixIndex()
        self._heads: dict[str, tuple[Route, int]] = {}
        """By formation, with how far each has told what it has cached."""
        self.followings: list[Following] = []
        self._taking: set[str] = set()
        """What it was given to read and does not read yet."""
        self.every(TICK_S, self._tick)
        if environment.settings.claims:
            self.every(CLAIM_EVERY_S, self._claim)

    def update(self, routes: tuple[Route, ...], handing_over: tuple[str, ...]) -> None:
        """The controller told the routes."""
        self.balancer.update(routes, handing_over)
        self.hearing.keep((*(route.formation_id for route in routes), *handing_over))
        unheard = {route.formation_id: (route, UNTOLD) for route in routes}
        self._heads = {name: self._heads.get(name, new) for name, new in unheard.items()}
        self.prefixes.keep(self._heads)
        self._tick()

    def _hear(self) -> None:
        """What heads have cached: at once and in order, for it decides about no id."""
        for name, (route, position) in self._heads.items():
            news, position = self._cached(self, route, position)
            self._heads[name] = route, position
            if news is not None:
                self.prefixes.told(name, news)

    def _tick(self) -> None:
        self.hearing.look(self.clock.now_s)
        self._hear()
        for following in list(self.followings):
            following.tick()

    def generate(self, client: Stream, asked: tuple[GenerationRequest, bool]) -> None:
        """A new generation; one that was asked for before may run already, and only the
        controller knows where."""
        request, again = asked
        if again and request.ask_digest:
            self._retry(client, request)
        else:
            self._begin(client, request, again)

    def _retry(self, client: Stream, request: GenerationRequest) -> None:
        """Joins what the client's first ask began, if nobody reads it."""

        def claimed(view: GenerationView | ShuntError) -> None:
            if client not in self.streams:
                return  # it left meanwhile
            if isinstance(view, ShuntError):
                self._begin(client, request, True)
                return
            following = self._follow(client, view.request, None)
            following.whole = True
            following.do(following.reading.rejoin(view, self.clock.now_s))

        self.call(CONTROLLER, "claim", (request.ask_digest,), claimed)

    def _begin(self, client: Stream, request: GenerationRequest, again: bool) -> None:
        following = self._follow(client, request, None)
        following.whole = bool(request.ask_digest)
        found = self.prefixes.found(request)
        asks_first = again or request.runs_unread
        route = None if asks_first else self.balancer.pick(request.model.model_id, found)
        holder = None
        if route is not None:
            holder = holder_of(found, route, self.balancer.routes_of(request.model.model_id))
        following.perform(following.follower.begin(route, self.clock.now_s, holder))

    def rejoin(self, client: Stream, asked: tuple[str, str]) -> None:
        """A client comes back with its last event id."""
        name, seen = asked

        def viewed(view: GenerationView | ShuntError) -> None:
            if client not in self.streams:
                return  # it left meanwhile
            if isinstance(view, Unavailable | DeadlineExceeded):
                client.close(self, view)
                return
            if isinstance(view, ShuntError):
                client.send(self, ("end", view, None, ""))
                client.close(self)
                return
            after = Position.parse(seen, view.request.choices) if seen else None
            following = self._follow(client, view.request, after)
            following.named = True
            following.do(following.reading.rejoin(view, self.clock.now_s))

        self.call(CONTROLLER, "view", (name,), viewed)

    def _follow(
        self, client: Stream, request: GenerationRequest, after: Position | None
    ) -> Following:
        following = Following(self, client, request, after)
        self.followings.append(following)
        client.on_end[self] = lambda _: self._client_gone(following)
        return following

    def _client_gone(self, following: Following) -> None:
        if following not in self.followings:
            return
        runs_on = following.follower.request.runs_unread and not following.reading.ended
        if runs_on and following.named:
            following.keep()
            return
        if runs_on:  # nobody can ask for it
            following.perform(following.follower.cancel())
        if following in self.followings:
            self.followings.remove(following)
            following.do(following.reading.close(resumable=not following.whole))

    def retrieve(self, reply: Any, name: str) -> None:
        """What the journal holds of a response."""
        self.call(CONTROLLER, "view", (name,), reply)

    def delete(self, reply: Any, name: str) -> None:
        """Nothing of a response is to be left."""
        self.call(CONTROLLER, "delete", (name,), reply)

    def _claim(self) -> None:
        """Takes what runs unread and has lost its reader."""
        self.call(CONTROLLER, "claim_background", (CLAIMED_AT_ONCE,), self._claimed)

    def _claimed(self, names: tuple[str, ...] | ShuntError) -> None:
        if isinstance(names, ShuntError):
            return
        read = {f.follower.request.generation_id for f in self.followings if f.client is None}
        for name in names:
            if name not in read | self._taking:
                self._taking.add(name)
                self.call(CONTROLLER, "view", (name,), partial(self._taken, name))

    def _taken(self, name: str, view: GenerationView | ShuntError) -> None:
        self._taking.discard(name)
        if not isinstance(view, ShuntError):  # else it will be offered again
            following = Following(self, None, view.request, None)
            self.followings.append(following)
            following.do(following.reading.rejoin(view, self.clock.now_s))

    def cancel(self, reply: Any, name: str) -> None:
        """The client gives up."""
        mine = [f for f in self.followings if f.follower.request.generation_id == name]
        for following in mine:
            following.perform(following.follower.cancel())
        if not mine:
            self.send_cancel(SendCancel(name, None, CancelReason.CLIENT, None, None))
        reply(None)

    def ask(self, following: Following, ask: AskResume) -> None:
        """Resume at the controller."""
        follower = following.follower
        self.monitor.asked(ask.question)

        def answered(result: Any) -> None:
            now_s = self.clock.now_s
            if isinstance(result, ShuntError):
                following.perform(follower.not_granted(ask.number, result, now_s))
            else:
                following.perform(follower.granted(ask.number, result, now_s))

        args = (ask.question, self.clock.now_s + ask.timeout_s)
        self.call(CONTROLLER, "resume", args, answered, ask.timeout_s)

    def send_detach(self, detach: SendDetach) -> None:
        """To the head, once."""
        left = Left(detach.generation_id, detach.epoch, detach.reader, detach.resumable)
        self.call(detach.head.incarnation, "client_gone", (left,))

    def send_cancel(self, cancel: SendCancel) -> None:
        """To the controller until it is taken, and once to the head."""
        args = (cancel.generation_id, cancel.choice, cancel.reason)

        def answered(result: Any) -> None:
            if isinstance(result, ShuntError):
                self.after(0.2, self.send_cancel, cancel)

        self.call(CONTROLLER, "cancel", (*args, cancel.length), answered)
        if cancel.head is not None:
            self.call(cancel.head.incarnation, "cancel", args)
