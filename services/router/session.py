"""One reader of one generation: performs what the follower asks and keeps the transcript."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

from opentelemetry import trace

from services.common.errors import (
    Cancelled,
    FailedPrecondition,
    OutOfRange,
    ResourceExhausted,
    ShuntError,
    Superseded,
    Unavailable,
)
from services.common.exchange import Closed, GenerationState, GenerationView, PrefixHolder, Route
from services.common.generation import FinishReason, GenerationRequest
from services.router import metrics
from services.router.cancels import Cancels
from services.router.controller import ControllerClient
from services.router.core.actions import (
    Action,
    ArithmeticChanged,
    AskResume,
    CloseStream,
    Deliver,
    OpenStream,
    SendCancel,
    SendDetach,
)
from services.router.core.latencies import Latencies
from services.router.core.reading import Reading
from services.router.core.transcript import Transcript
from services.router.heads import Heads
from services.router.kept_end import kept_end
from services.router.metrics import TenantSeries
from services.router.pipelines import PipelineTable

_log = logging.getLogger(__name__)

_READERS_OWN = (Cancelled, Superseded, FailedPrecondition, OutOfRange)
"""A reader gave up, came back elsewhere, or asked for an event that is none of this stream."""


def _nothing() -> None:
    """For a session whose edge has no connection yet."""


class Session:
    """Made within the request's trace context; every call it makes belongs to that trace.

    Wait for `wake`, then take events from the transcript. `close` may be called at any time, from
    anywhere, and again.
    """

    def __init__(
        self,
        reading: Reading,
        *,
        heads: Heads,
        controller: ControllerClient,
        cancels: Cancels,
        pipelines: PipelineTable,
        tenants: TenantSeries,
        clock: Callable[[], float],
        closed: Callable[[Session], None],
    ) -> None:
        self.wake = asyncio.Event()
        self._told_s = clock()
        self.comment_due = False
        """The reader has heard nothing for long."""
        self._changes: list[ArithmeticChanged] = []
        """That the reader has not been told."""
        self.resumable = False
        """The client knows the generation's id, from an answer that has begun."""
        self.cut: Callable[[], object] = _nothing
        """Ends the connection of a client that has taken nothing for long."""
        self._latencies = Latencies()
        self._first_token: Callable[[], object] = _nothing
        """Hears of it once."""
        self._writing_s: float | None = None
        """Since when its edge waits for the client to read."""
        self._paused = False
        """The client has taken nothing for a while."""
        self._reading = reading
        self._follower = reading.follower
        self._heads = heads
        self._controller = controller
        self._cancels = cancels
        self._pipelines = pipelines
        self._tenants = tenants
        self._clock = clock
        self._on_close = closed
        self._context = contextvars.copy_context()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pumps: dict[int, asyncio.Task[None]] = {}
        """By stream."""
        self._left = self._closed = False

    @property
    def transcript(self) -> Transcript:
        return self._reading.transcript

    @property
    def ended(self) -> bool:
        return self._reading.ended

    @property
    def error(self) -> ShuntError | None:
        """Set with `ended`, when it did not end well."""
        return self._reading.error

    @property
    def owes_usage(self) -> bool:
        """The client is yet to be told usage and the end's id."""
        return self._reading.owes_usage

    @property
    def stuck(self) -> bool:
        """It ended because what its text must follow has become too much to go on with."""
        reasons = map(self._follower.finish_reason, range(self.request.choices))
        return FinishReason.GRAMMAR in reasons and not self.overruled

    @property
    def request(self) -> GenerationRequest:
        return self._follower.request

    @property
    def generation_id(self) -> str:
        return self._follower.request.generation_id

    @property
    def model_id(self) -> str:
        return self._follower.request.model.model_id

    def waits_s(self, now_s: float) -> float:
        """How long a new generation has waited for its first token; 0 once that is here."""
        return 0.0 if self.ended else self._latencies.waits_s(now_s)

    @property
    def facts(self) -> dict[str, str | int]:
        """What the log tells of it."""
        usage = self.transcript.usage
        return {
            "generation_id": self.generation_id,
            "model": self.model_id,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        }

    def take_changes(self) -> list[ArithmeticChanged]:
        """What the reader has not been told of the arithmetic."""
        changes, self._changes = self._changes, []
        return changes

    def begin(
        self,
        route: Route | None,
        asked_s: float,
        first_token: Callable[[], object] = _nothing,
        holder: PrefixHolder | None = None,
    ) -> None:
        """A new generation, on this head, whose prompt the `holder` has more of, or on one that the
        controller names; `first_token` is called when that is here."""
        self._latencies.asked(asked_s)
        self._first_token = first_token
        self._perform(self._follower.begin(route, self._clock(), holder))

    def rejoin(self, view: GenerationView) -> None:
        """A generation that another reader began."""
        self._do(self._reading.rejoin(view, self._clock()))

    def tick(self, now_s: float, comment_s: float, unread_s: float, write_timeout_s: float) -> None:
        """Lets the follower see the time; wakes a reader that has waited for long. What a client
        takes nothing of yields to others, and in the end the client is let go."""
        self._do(self._reading.tick(now_s))
        waits_s = now_s - self._writing_s if self._writing_s is not None else 0.0
        if waits_s >= unread_s and not self._paused:
            self._paused = True
            self._do(self._reading.pause())
        if waits_s >= write_timeout_s:
            self.fail(ResourceExhausted("the client does not read; it can resume"))
            self.close()
            self.cut()
        if now_s - self._told_s >= comment_s and not self.comment_due:
            self.comment_due = True
            self.wake.set()

    def write_began(self) -> None:
        """The edge hands something to the client's side, and waits until it is taken."""
        self._writing_s = self._clock()
        self._reading.writing = True

    def written(self) -> None:
        """It was taken."""
        if self._paused:
            self._paused = False
            self._perform(self._follower.go_on(self._clock()))
        self._writing_s = None
        self._reading.writing = False
        self.comment_due = False
        self._told_s = self._clock()

    async def begun(self) -> None:
        """Returns once an epoch was given to it: from then on the journal has it, where that was
        asked of the controller. Or once it has ended."""
        while not (self._follower.epoch or self.ended):
            await self.wake.wait()
            self.wake.clear()

    async def end_kept(self) -> None:
        """Of what is kept for long and has ended well: returns when the journal knows that, or has
        heard of a cancel before, so that whoever was told finds it so; or after `resume_timeout_s`,
        for a controller that is away withholds no answer."""
        terms, ended_well = self.request.response, self.error is None or self.stuck
        if terms is None or not (terms.store and ended_well):
            return
        within_s = self._follower.settings.resume_timeout_s
        asked = self._controller, self.generation_id, self._reading.left_alone
        state = await kept_end(*asked, within_s)
        if state is GenerationState.CANCELLED:
            self._reading.overrule(Cancelled("the generation was cancelled"))

    @property
    def overruled(self) -> bool:
        """It has not ended as its ids say."""
        return self._reading.overruled

    def read_for_nobody(self) -> None:
        """It has no client, and reads so that the generation runs on; any client that comes to read
        has the generation for itself."""
        self._follower.for_nobody = True

    def cancel(self) -> None:
        """The client gives the generation up."""
        self._perform(self._follower.cancel())

    def fail(self, error: ShuntError) -> None:
        """Ends this reader; the generation stays resumable."""
        self._do(self._reading.fail(error))

    def client_gone(self) -> None:
        """Lets the head know that the reader's client is gone; the session is yet to be closed."""
        if not (self.ended or self.request.runs_unread):
            self._leave()

    async def closing_turn(self) -> None:
        """Returns when a session whose client is gone may be closed. That costs as much as a small
        answer: a crowd's heads know at once, so that nobody waits behind it there, and its sessions
        are closed a few at a time."""
        await self._cancels.turns.turn()

    def close(self) -> None:
        """The reader is gone. A generation that it can resume goes on, and parks when nobody comes
        back; another one parks at once."""
        if self._closed:
            return
        self._closed = True
        self._leave()
        for task in self._tasks:
            task.cancel()
        self._on_close(self)

    def _leave(self) -> None:
        """Nothing more is heard; streams are left as they are, and end with their tasks."""
        if self._left:
            return
        self._left = True
        for action in self._reading.close(resumable=self.resumable):
            if isinstance(action, SendDetach):
                self._cancels.detach(action, self._context)

    def _perform(self, actions: Sequence[Action]) -> None:
        self._do(self._reading.perform(actions))

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Deliver):
                self._delivered(action)
            elif isinstance(action, OpenStream):
                self._pumps[action.stream] = self._spawn(self._pump(action))
            elif isinstance(action, CloseStream):
                task = self._pumps.pop(action.stream, None)
                if task is not None and task is not asyncio.current_task():
                    task.cancel()
            elif isinstance(action, AskResume):
                self._latencies.left(action.question.reason, self._clock())
                self._spawn(self._ask(action))
            elif isinstance(action, SendCancel):
                self._cancels.send(action, self._context)
            elif isinstance(action, ArithmeticChanged):
                self._changed(action)
            elif isinstance(action, SendDetach):
                self._cancels.detach(action, self._context)
            else:
                self._ended()

    def _delivered(self, action: Deliver) -> None:
        tokens = sum(gain.end - gain.start for gain in action.gains)
        metrics.of_model(self.model_id).tokens.inc(tokens)
        first_token, self._first_token = self._first_token, _nothing
        first_token()
        self.wake.set()

    def _heard(self, actions: Sequence[Action], now_s: float) -> None:
        """What a frame of the head came to."""
        gains = [gain for a in actions if isinstance(a, Deliver) for gain in a.gains]
        counts = [gain.end - gain.start for gain in gains]
        heard, route = self._latencies.frame(max(counts, default=0), now_s), self._follower.route
        if heard is not None and route is not None:
            prompt, tokens = len(self.request.prompt_ids), sum(counts)
            series = self._pipelines.of(self.model_id, route.pipeline_id)
            series.heard(heard, prompt, tokens)
            self._tenants.heard(self.request.tenant, heard, prompt, tokens)

    def _changed(self, action: ArithmeticChanged) -> None:
        metrics.ARITHMETIC_CHANGED.labels(self.model_id).inc()
        classes = {"before": action.before, "now": action.now}
        _log.warning("other arithmetic", extra={"generation_id": self.generation_id, **classes})
        trace.get_current_span().add_event("arithmetic_changed", classes)
        self._changes.append(action)
        self.wake.set()

    def _ended(self) -> None:
        metrics.MOVES.labels(self.model_id).inc(self._follower.moves)
        if self.error is not None and not isinstance(self.error, _READERS_OWN):
            metrics.FAILED.labels(type(self.error).__name__, self.model_id).inc()
        route = self._follower.route
        ended = self._latencies.ended(max(map(len, self._follower.runs)), self._clock())
        if self.error is None and ended is not None and route is not None:
            reasons = filter(None, map(self._follower.finish_reason, range(self.request.choices)))
            self._pipelines.of(self.model_id, route.pipeline_id).ended(ended, reasons)
        self.wake.set()

    async def _pump(self, action: OpenStream) -> None:
        """Hands one stream's frames to the follower until the stream ends."""
        follower = self._follower
        error: ShuntError = Unavailable("the head closed the stream without a word")
        try:
            async with aclosing(self._heads.frames(action.route, action.call)) as frames:
                async for frame in frames:
                    now_s = self._clock()
                    actions = self._reading.frame(action.stream, frame, now_s)
                    self._heard(actions, now_s)
                    self._perform(actions)
                    if isinstance(frame, Closed) or not self._reading.is_open(action.stream):
                        return
        except ShuntError as failure:
            error = failure
        finally:
            self._reading.left(action.stream)
            self._pumps.pop(action.stream, None)
        self._perform(follower.broken(action.stream, error, self._clock()))

    async def _ask(self, action: AskResume) -> None:
        metrics.RESUMES.labels(self.model_id).inc()
        try:
            grant = await self._controller.resume(action.question, action.timeout_s)
        except ShuntError as error:
            self._perform(self._follower.not_granted(action.number, error, self._clock()))
        else:
            if grant.epoch > action.question.last_epoch:
                _log.info(
                    "epoch granted",
                    extra={"generation_id": self.generation_id, "epoch": grant.epoch},
                )
            moved, now_s = grant.epoch > action.question.last_epoch, self._clock()
            self._perform(self._follower.granted(action.number, grant, now_s))
            self._latencies.granted(moved, now_s)
            self.wake.set()

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
