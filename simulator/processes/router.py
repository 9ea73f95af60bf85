"""A simulated router and its clients: the production follower, balancer and event ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from services.common.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    ShuntError,
    Unavailable,
)
from services.common.exchange import Closed, Frame, GenerationView, Route
from services.common.generation import CancelReason, FinishReason, GenerationRequest
from services.common.token_run import event_id, matches_event_id, parse_event_id
from services.router.core.actions import (
    Action,
    AskResume,
    CloseStream,
    Deliver,
    End,
    Gain,
    OpenStream,
    SendCancel,
    SendDetach,
)
from services.router.core.balancer import Balancer
from services.router.core.follower import Follower
from simulator.environment.network import Process, Stream

if TYPE_CHECKING:
    from simulator.world import World

TICK_S = 0.25


class Following:
    """One client's stream: ids in, text out. Here the text of an id is the id, and a stop string
    is an id named in the request."""

    def __init__(
        self, router: SimulatedRouter, client: Stream, request: GenerationRequest, seen: str
    ) -> None:
        self.router = router
        self.client = client
        self.follower = Follower(request, router.world.settings.follower)
        self.finish: list[FinishReason | None] = [None] * request.choices
        self.accepted = False
        """The present stream to a head has answered."""
        self.whole = False
        """Its client wants one answer in the end, and has nothing to come back by before."""
        self._stops = {int(text) for text in request.stop_strings}
        self._fed = [0] * request.choices
        self._skip, self._checksum = parse_event_id(seen) if seen else ((0,) * request.choices, 0)
        self._checked = not seen
        self._streams: dict[int, Stream] = {}

    def act(self, actions: list[Action]) -> None:
        """Does what the follower asks."""
        for action in actions:
            if isinstance(action, OpenStream):
                self._open(action)
            elif isinstance(action, CloseStream):
                stream = self._streams.pop(action.stream, None)
                if stream is not None:
                    stream.close(self.router)
            elif isinstance(action, AskResume):
                self.router.ask(self, action)
            elif isinstance(action, Deliver):
                for gain in action.gains:
                    self._show(gain)
            elif isinstance(action, SendCancel):
                self.router.send_cancel(action)
            elif isinstance(action, SendDetach):
                self.router.send_detach(action)
            elif isinstance(action, End):
                self._end(action.error)

    def _open(self, action: OpenStream) -> None:
        world, router, number = self.router.world, self.router, action.stream
        engine = world.engine(action.route.incarnation)
        stream = world.stream(router, engine, engine.generate, action.call)
        self.accepted = False

        def frame(message: Frame) -> None:
            self.accepted = True
            world.monitor.frame(self, number, message)
            if isinstance(message, Closed):
                stream.close(router)
            self.act(self.follower.frame(number, message, router.clock.now_s))

        def ended(error: ShuntError | None) -> None:
            if error is not None:
                self.act(self.follower.broken(number, error, router.clock.now_s))

        stream.on_message[router] = frame
        stream.on_end[router] = ended
        self._streams[number] = stream

    def _show(self, gain: Gain) -> None:
        choice = gain.choice
        ids = []
        for token in self.follower.runs[choice].ids[gain.start : gain.end]:
            if self.finish[choice] is not None:
                break
            self._fed[choice] += 1
            if token in self._stops:
                self.finish[choice] = FinishReason.STOP
                length = self._fed[choice]
                self.router.after(0.0, self._stopped, choice, length)
            elif self._fed[choice] > self._skip[choice]:
                ids.append(token)
        if self.finish[choice] is None:
            self.finish[choice] = self.follower.finish_reason(choice)
        if not self._check():
            return
        seen = event_id(
            self.follower.runs, [max(*p) for p in zip(self._fed, self._skip, strict=True)]
        )
        self.client.send(self.router, ("ids", choice, ids, self.finish[choice], seen))

    def _stopped(self, choice: int, length: int) -> None:
        self.act(self.follower.stopped(choice, length))

    def _check(self) -> bool:
        """The client saw the ids that there are, as far as they are known by now."""
        if self._checked:
            return True
        runs = self.follower.runs
        if any(len(run) < seen for run, seen in zip(runs, self._skip, strict=True)):
            return False
        self._checked = True
        if matches_event_id(runs, self._skip, self._checksum):
            return True
        self.act(self.follower.detach())
        self._end(FailedPrecondition("the event id names other ids", field="last_event_id"))
        return False

    def _end(self, error: ShuntError | None) -> None:
        if error is None and not self._check() and self in self.router.followings:
            error = FailedPrecondition("the event id is past the end", field="last_event_id")
        if self in self.router.followings:
            self.router.followings.remove(self)
            self.client.send(self.router, ("end", error, tuple(self.finish)))
            self.client.close(self.router)


class SimulatedRouter(Process):
    """One replica."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(name, world.clock)
        self.world = world
        self.balancer = Balancer()
        self.followings: list[Following] = []
        self.every(TICK_S, self._tick)

    def update(self, routes: tuple[Route, ...], handing_over: tuple[str, ...]) -> None:
        """The controller told the routes."""
        self.balancer.update(routes, handing_over)
        self._tick()

    def _tick(self) -> None:
        for following in list(self.followings):
            route = following.follower.route
            serves = route is not None and self.balancer.serves(route.formation_id)
            following.act(following.follower.tick(self.clock.now_s, serves=serves))

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
            following = self._follow(client, view.request, "")
            following.whole = True
            following.act(following.follower.rejoin(view, self.clock.now_s))

        controller = self.world.controller
        args = (request.ask_digest,)
        self.world.network.call(self, controller, controller.claim, args, claimed)

    def _begin(self, client: Stream, request: GenerationRequest, again: bool) -> None:
        following = self._follow(client, request, "")
        following.whole = bool(request.ask_digest)
        route = None if again else self.balancer.pick(request.model.model_id)
        following.act(following.follower.begin(route, self.clock.now_s))
        if route is not None:
            self.balancer.began(route.formation_id)
            self.after(1.0, self.balancer.ended, route.formation_id)

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
                client.send(self, ("end", view, ()))
                client.close(self)
                return
            following = self._follow(client, view.request, seen)
            following.act(following.follower.rejoin(view, self.clock.now_s))

        controller = self.world.controller
        self.world.network.call(self, controller, controller.view, (name,), viewed)

    def _follow(self, client: Stream, request: GenerationRequest, seen: str) -> Following:
        following = Following(self, client, request, seen)
        self.followings.append(following)
        client.on_end[self] = lambda _: self._client_gone(following)
        return following

    def _client_gone(self, following: Following) -> None:
        if following in self.followings:
            self.followings.remove(following)
            following.act(following.follower.client_gone(not following.whole))

    def cancel(self, reply: Any, name: str) -> None:
        """The client gives up."""
        mine = [f for f in self.followings if f.follower.request.generation_id == name]
        for following in mine:
            following.act(following.follower.cancel())
        if not mine:
            self.send_cancel(SendCancel(name, None, CancelReason.CLIENT, None, None))
        reply(None)

    def ask(self, following: Following, ask: AskResume) -> None:
        """Resume at the controller."""
        follower, controller = following.follower, self.world.controller
        self.world.monitor.asked(ask.question)

        def answered(result: Any) -> None:
            now_s = self.clock.now_s
            if isinstance(result, ShuntError):
                following.act(follower.not_granted(ask.number, result, now_s))
            else:
                following.act(follower.granted(ask.number, result, now_s))

        args = (ask.question, self.clock.now_s + ask.timeout_s)
        self.world.network.call(self, controller, controller.resume, args, answered, ask.timeout_s)

    def send_detach(self, detach: SendDetach) -> None:
        """To the head, once."""
        engine = self.world.engine(detach.head.incarnation)
        args = (detach.generation_id, detach.epoch, detach.resumable)
        self.world.network.call(self, engine, engine.client_gone, args, lambda _: None)

    def send_cancel(self, cancel: SendCancel) -> None:
        """To the controller until it is taken, and once to the head."""
        controller = self.world.controller
        args = (cancel.generation_id, cancel.choice, cancel.reason)

        def answered(result: Any) -> None:
            if isinstance(result, ShuntError):
                self.after(0.2, self.send_cancel, cancel)

        whole = (*args, cancel.length)
        self.world.network.call(self, controller, controller.cancel, whole, answered)
        if cancel.head is not None:
            engine = self.world.engine(cancel.head.incarnation)
            self.world.network.call(self, engine, engine.cancel, args, lambda _: None)


class Client(Process):
    """Asks, reads, comes back when its line or its router breaks."""

    def __init__(
        self, world: World, request: GenerationRequest, first: Client | None = None
    ) -> None:
        """`first`: the client that asked; this one reads the same generation from the start."""
        super().__init__(f"client/{request.generation_id}", world.clock)
        self.first = first
        self.last_head = ""
        """Incarnation of the head its reader followed last."""
        self.world = world
        self.request = request
        self.whole = bool(request.ask_digest) and first is None
        """It wants one answer in the end: what came before its line broke is lost to it."""
        self.ids: list[list[int]] = [[] for _ in range(request.choices)]
        self.finish: tuple[FinishReason | None, ...] = ()
        self.error: ShuntError | None = None
        self.ends = 0
        """Ends it was told of; one is right."""
        self.cancelled = False
        self.left_s: float | None = None
        """When it left for good."""
        self.away_s = 0.2
        """How long it stays away when its line breaks."""
        self.rejoins = 0
        self._seen = ""
        self._stream: Stream | None = None
        self._connect(new=first is None)

    @property
    def ended(self) -> bool:
        """It was told the end."""
        return self.ends > 0

    def _connect(self, new: bool) -> None:
        router = self.world.any_router()
        if router is None:
            self.after(0.2, self._connect, new)
            return
        again = self._stream is not None
        name = self.request.generation_id
        asked: Any = (self.request, again) if new else (name, self._seen)
        accept: Any = router.generate if new else router.rejoin
        self.rejoins += self._stream is not None
        self._stream = stream = self.world.stream(self, router, accept, asked)
        stream.on_message[self] = self._message
        stream.on_end[self] = self._line_ended

    def _message(self, message: tuple[Any, ...]) -> None:
        if message[0] == "ids":
            _, choice, ids, _, self._seen = message
            self.ids[choice] += ids
            self.world.monitor.shown(self)
        else:
            _, self.error, self.finish = message
            self.ends += 1
            self.world.monitor.client_ended(self)

    def _line_ended(self, error: ShuntError | None) -> None:
        if self.whole and not self.ended:
            self.ids, self._seen = [[] for _ in self.ids], ""
        if not self.ended:
            new = not self._seen and self.first is None
            self.after(self.away_s, self._connect, new)

    def hang_up(self) -> None:
        """Closes its line, and comes back."""
        if self._stream in self.streams:
            self._stream.close(self)
            self._line_ended(None)

    def leave(self) -> None:
        """Closes its line, and never comes back."""
        if self._stream in self.streams:
            self.left_s = self.clock.now_s
            self._stream.close(self)

    def cancel(self) -> None:
        """Gives up, at any router."""
        router = self.world.any_router()
        if router is not None:
            self.cancelled = True
            args = (self.request.generation_id,)
            self.world.network.call(self, router, router.cancel, args, lambda _: None)
