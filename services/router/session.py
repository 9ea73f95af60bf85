"""One reader of one generation: performs what the follower asks and keeps the transcript."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from services.common.errors import (
    Cancelled,
    DataLoss,
    FailedPrecondition,
    OutOfRange,
    ResourceExhausted,
    ShuntError,
    Superseded,
    Unavailable,
)
from services.common.exchange import Closed, GenerationView, Route
from services.router import metrics
from services.router.cancels import Cancels
from services.router.controller import ControllerClient
from services.router.core.actions import (
    Action,
    AskResume,
    CloseStream,
    Deliver,
    End,
    OpenStream,
    SendCancel,
    SendDetach,
)
from services.router.core.balancer import Balancer
from services.router.core.follower import Follower
from services.router.core.transcript import Transcript
from services.router.heads import Heads

_log = logging.getLogger(__name__)


_READERS_OWN = (Cancelled, Superseded, FailedPrecondition, OutOfRange)
"""A reader gave up, came back elsewhere, or asked for an event that is none of this stream."""


def _nothing() -> None:
    """For a session whose edge has no connection yet."""


class _Pump(NamedTuple):
    task: asyncio.Task[None]
    formation_id: str


class Session:
    """Made within the request's trace context; every call it makes belongs to that trace.

    Wait for `wake`, then take events from the transcript. `close` may be called at any time, from
    anywhere, and again.
    """

    def __init__(
        self,
        follower: Follower,
        transcript: Transcript,
        *,
        heads: Heads,
        controller: ControllerClient,
        balancer: Balancer,
        cancels: Cancels,
        clock: Callable[[], float],
        max_unread_bytes: int,
        closed: Callable[[Session], None],
    ) -> None:
        self.transcript = transcript
        self.ended = False
        self.error: ShuntError | None = None
        """Set with `ended`, when it did not end well."""
        self.wake = asyncio.Event()
        self._told_s = clock()
        self.comment_due = False
        """The reader has heard nothing for long."""
        self.resumable = False
        """The client knows the generation's id, from an answer that has begun."""
        self.cut: Callable[[], object] = _nothing
        """Ends the connection of a client that has taken nothing for long."""
        self._asked_s: float | None = None
        """When a new generation was asked for; None once its first token is here."""
        self._writing_s: float | None = None
        """Since when its edge waits for the client to read."""
        self._max_unread_bytes = max_unread_bytes
        self._follower = follower
        self._heads = heads
        self._controller = controller
        self._balancer = balancer
        self._cancels = cancels
        self._clock = clock
        self._on_close = closed
        self._context = contextvars.copy_context()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pumps: dict[int, _Pump] = {}
        """By stream; each counts as one that runs on its pipeline, until it is left."""
        self._closed = False

    @property
    def generation_id(self) -> str:
        return self._follower.request.generation_id

    @property
    def facts(self) -> dict[str, str | int]:
        """What the log tells of it."""
        usage = self.transcript.usage
        return {
            "generation_id": self.generation_id,
            "model": self._follower.request.model.model_id,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        }

    def begin(self, route: Route | None, asked_s: float) -> None:
        """A new generation, on this head, or on one that the controller names."""
        self._asked_s = asked_s
        self._apply(self._follower.begin(route, self._clock()))

    def rejoin(self, view: GenerationView) -> None:
        """A generation that another reader began."""
        self._apply(self._deliver(Deliver(())))
        self._apply(self._follower.rejoin(view, self._clock()))

    def tick(self, now_s: float, comment_s: float, write_timeout_s: float) -> None:
        """Lets the follower see the time; wakes a reader that has waited for long; lets go a client
        that has taken nothing for long."""
        route = self._follower.route
        serves = route is not None and self._balancer.serves(route.formation_id)
        self._apply(self._follower.tick(now_s, serves=serves))
        if self._writing_s is not None and now_s - self._writing_s >= write_timeout_s:
            self.fail(ResourceExhausted("the client does not read; it can resume"))
            self.close()
            self.cut()
        if now_s - self._told_s >= comment_s and not self.comment_due:
            self.comment_due = True
            self.wake.set()

    def write_began(self) -> None:
        """The edge hands something to the client's side, and waits until it is taken."""
        self._writing_s = self._clock()

    def written(self) -> None:
        """It was taken."""
        self._writing_s = None
        self.comment_due = False
        self._told_s = self._clock()

    def cancel(self) -> None:
        """The client gives the generation up."""
        self._apply(self._follower.cancel())

    def fail(self, error: ShuntError) -> None:
        """Ends this reader; the generation stays resumable."""
        if not self.ended:
            self._apply([*self._follower.detach(), End(error)])

    def close(self) -> None:
        """The reader is gone. A generation that it can resume goes on, and parks when nobody comes
        back; another one parks at once."""
        if self._closed:
            return
        self._closed = True
        self._apply(self._follower.client_gone(self.resumable))
        self._leave_all()
        for task in self._tasks:
            task.cancel()
        self._on_close(self)

    def _apply(self, actions: Sequence[Action]) -> None:
        waiting = list(actions)
        while waiting:
            action = waiting.pop(0)
            if isinstance(action, Deliver):
                waiting = [*self._deliver(action), *waiting]
            elif self.ended and isinstance(action, (OpenStream, AskResume)):
                continue
            elif isinstance(action, OpenStream):
                self._open(action)
            elif isinstance(action, CloseStream):
                task = self._leave(action.stream)
                if task is not None and task is not asyncio.current_task():
                    task.cancel()
            elif isinstance(action, AskResume):
                self._spawn(self._ask(action))
            elif isinstance(action, SendCancel):
                self._cancels.send(action, self._context)
            elif isinstance(action, SendDetach):
                self._cancels.detach(action, self._context)
            else:
                self._end(action)

    def _deliver(self, action: Deliver) -> list[Action]:
        metrics.TOKENS.inc(sum(gain.end - gain.start for gain in action.gains))
        if self._asked_s is not None:
            metrics.FIRST_TOKEN_S.observe(self._clock() - self._asked_s)
            self._asked_s = None
        try:
            stopped = self.transcript.advance()
        except ShuntError as error:
            return [*self._follower.detach(), End(error)]
        self.wake.set()
        unread = self.transcript.waiting_bytes if self._writing_s is not None else 0
        if unread > self._max_unread_bytes:
            slow = ResourceExhausted("the client reads too slowly; it can resume")
            return [*self._follower.detach(), End(slow)]
        return [a for choice, length in stopped for a in self._follower.stopped(choice, length)]

    def _end(self, action: End) -> None:
        if self.ended:
            return
        self.ended, self.error = True, action.error
        self._leave_all()
        if self.error is None and not (self.transcript.finished and self.transcript.caught_up):
            self.error = DataLoss("the generation ended before its text did")
        metrics.MOVES.inc(self._follower.moves)
        if self.error is not None and not isinstance(self.error, _READERS_OWN):
            metrics.FAILED.labels(type(self.error).__name__).inc()
        self.wake.set()

    def _open(self, action: OpenStream) -> None:
        formation_id = action.route.formation_id
        # Counted before the next request picks its pipeline, not when the task first runs.
        self._balancer.began(formation_id)
        self._pumps[action.stream] = _Pump(self._spawn(self._pump(action)), formation_id)

    def _leave(self, stream: int) -> asyncio.Task[None] | None:
        """Counts a stream out, once; its task, for the first that asks."""
        pump = self._pumps.pop(stream, None)
        if pump is None:
            return None
        self._balancer.ended(pump.formation_id)
        return pump.task

    def _leave_all(self) -> None:
        for stream in list(self._pumps):
            self._leave(stream)

    async def _pump(self, action: OpenStream) -> None:
        """Hands one stream's frames to the follower until the stream ends."""
        follower = self._follower
        error: ShuntError = Unavailable("the head closed the stream without a word")
        try:
            async with aclosing(self._heads.frames(action.route, action.call)) as frames:
                async for frame in frames:
                    self._apply(follower.frame(action.stream, frame, self._clock()))
                    if isinstance(frame, Closed) or action.stream not in self._pumps:
                        return
        except ShuntError as failure:
            error = failure
        finally:
            self._leave(action.stream)
        self._apply(follower.broken(action.stream, error, self._clock()))

    async def _ask(self, action: AskResume) -> None:
        metrics.RESUMES.inc()
        try:
            grant = await self._controller.resume(action.question, action.timeout_s)
        except ShuntError as error:
            self._apply(self._follower.not_granted(action.number, error, self._clock()))
        else:
            if grant.epoch > action.question.last_epoch:
                _log.info(
                    "epoch granted",
                    extra={"generation_id": self.generation_id, "epoch": grant.epoch},
                )
            self._apply(self._follower.granted(action.number, grant, self._clock()))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a session failed", exc_info=task.exception())
            self.fail(Unavailable("this router failed; resume at another one"))
