"""A simulated router: the production follower, balancer and event ids."""

from __future__ import annotations

from typing import Any, Protocol

from services.common.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    ShuntError,
    Unavailable,
)
from services.common.exchange import Closed, Frame, GenerationView, ResumeQuestion, Route
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
from simulator.environment.addresses import CONTROLLER
from simulator.environment.environment import Environment
from simulator.environment.network import Process, Stream

TICK_S = 0.25


class RouterMonitor(Protocol):
    """Sees what a router hears and asks."""

    def asked(self, question: ResumeQuestion) -> None: ...
    def frame(self, follower: Follower, frame: Frame) -> None: ...


class Following:
    """One client's stream: ids in, text out. Here the text of an id is the id, and a stop string
    is an id named in the request."""

    def __init__(
        self, router: SimulatedRouter, client: Stream, request: GenerationRequest, seen: str
    ) -> None:
        self.router = router
        self.client = client
        self.follower = Follower(request, router.environment.settings.follower)
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
        router, number = self.router, action.stream
        stream = router.open(action.route.incarnation, "generate", action.call)
        self.accepted = False

        def frame(message: Frame) -> None:
            self.accepted = True
            router.monitor.frame(self.follower, message)
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

    def __init__(self, environment: Environment, monitor: RouterMonitor, name: str) -> None:
        super().__init__(name, environment.network)
        self.environment = environment
        self.monitor = monitor
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

        self.call(CONTROLLER, "claim", (request.ask_digest,), claimed)

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

        self.call(CONTROLLER, "view", (name,), viewed)

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
        follower = following.follower
        self.monitor.asked(ask.question)

        def answered(result: Any) -> None:
            now_s = self.clock.now_s
            if isinstance(result, ShuntError):
                following.act(follower.not_granted(ask.number, result, now_s))
            else:
                following.act(follower.granted(ask.number, result, now_s))

        args = (ask.question, self.clock.now_s + ask.timeout_s)
        self.call(CONTROLLER, "resume", args, answered, ask.timeout_s)

    def send_detach(self, detach: SendDetach) -> None:
        """To the head, once."""
        args = (detach.generation_id, detach.epoch, detach.resumable)
        self.call(detach.head.incarnation, "client_gone", args)

    def send_cancel(self, cancel: SendCancel) -> None:
        """To the controller until it is taken, and once to the head."""
        args = (cancel.generation_id, cancel.choice, cancel.reason)

        def answered(result: Any) -> None:
            if isinstance(result, ShuntError):
                self.after(0.2, self.send_cancel, cancel)

        self.call(CONTROLLER, "cancel", (*args, cancel.length), answered)
        if cancel.head is not None:
            self.call(cancel.head.incarnation, "cancel", args)
