"""A reader that follows one generation through frames, silence, hand-overs and kills to its end.

The edge owns at most one open stream to a head and one question to the controller at a time; both
are numbered, and what comes from another number is ignored. Every method returns actions, to be
performed in order. Until `End`, exactly one of them leads on to the next event: the edge needs no
logic of its own but timers (call `tick` every 0.25 s or so, and when the routes change).

Whether a head lives is not for its reader to judge: a crowd makes any head slow. Silence, or steps
that do not come, count only once the controller lists the head's formation no more; a stream that
breaks twice, or brings nothing for `reach_s`, twice, means that this reader does not reach it; but
while other readers at this router hear from that head, it is the router that is slow, or the stream
that is lost: it is opened again, and for `recover_s` the head counts as heard.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from math import inf

from services.common.errors import (
    AlreadyExists,
    Cancelled,
    DataLoss,
    Diverged,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ShuntError,
    StaleEpoch,
    Superseded,
    Unauthenticated,
    Unavailable,
)
from services.common.exchange import (
    Accepted,
    Closed,
    CloseReason,
    Frame,
    GenerateCall,
    GenerationState,
    GenerationView,
    Grant,
    KvSource,
    LeaveReason,
    PrefixHolder,
    Progress,
    ResumeQuestion,
    Route,
)
from services.common.generation import (
    CancelReason,
    FinishReason,
    GenerationRequest,
    TokenSpan,
    finish_of,
)
from services.common.token_run import TokenRun
from services.router.core.actions import (
    Action,
    ArithmeticChanged,
    AskResume,
    CloseStream,
    Deliver,
    End,
    Gain,
    OpenStream,
    SendCancel,
    SendDetach,
)
from services.router.core.follower_settings import FollowerSettings

_FOR_GOOD = (
    AlreadyExists,
    Diverged,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Superseded,
    Unauthenticated,
)
"""Errors that asking again, anywhere, does not cure."""
_ASK_ELSEWHERE = (Cancelled, FailedPrecondition, ResourceExhausted, StaleEpoch)
"""Answers of a living head that asking it again does not cure. Cancelled is one: the controller
knows for sure, while a status of that name may only say that a server shut down."""


class Follower:
    """One reader of one generation."""

    def __init__(
        self, request: GenerationRequest, settings: FollowerSettings, name: str = ""
    ) -> None:
        """`name` is no other reader's, at whichever router."""
        self.request = request
        self._name = name
        self.settings = settings
        self.runs = [TokenRun() for _ in range(request.choices)]
        self.epoch = 0
        """The last epoch this reader was given."""
        self.moves = 0
        """Epochs granted to this reader."""
        self.route: Route | None = None
        """The head it follows, or followed last."""
        self.numerics_class = request.numerics_class
        """Of the head that had it last."""
        self.ended = False
        self.for_nobody = False
        """It has no client: from now on its streams take the place of no reader that has one."""
        self._finish: list[FinishReason | None] = [None] * request.choices
        self._base: tuple[TokenSpan, ...] = ()
        self._kv_source: KvSource | None = None
        """Where blocks of the base may be had."""
        self._prefix_holder: PrefixHolder | None = None
        """Where blocks of its prompt may be had at epoch 1."""
        self._verified = [0] * request.choices
        """Lengths up to which base or present head agree with what is held."""
        self._stream = 0
        self._open = False
        self._question = 0
        self._asking = False
        self._ask_at_s: float | None = None
        self._retry_s = settings.retry_s
        self._trouble_s: float | None = None
        """When the present trouble began."""
        self._attached_again = False
        self._reason: LeaveReason | None = None
        """Why it leaves its head; None when that handed over, or there is none."""
        self._handed_on = False
        """Its last head handed it on, and keeps its blocks."""
        self._in_vain = False
        """The last grant has brought no step yet."""
        self._step: int | None = None
        """The last step its head told; a first one says nothing about progress."""
        self._silent_s = 0.0
        """Watched since the last frame."""
        self._paused = False
        """It let go of a head that it could follow."""
        self._unheard_s: float | None = None
        """Since when its head has been out of reach; None while it is not known to be."""
        self._all_silent_s = inf
        """For how long no reader at this router has heard from that head, at the last tick."""
        self._stepless_s = 0.0
        self._ticked_s = 0.0

    # Beginnings and ends

    def begin(
        self, route: Route | None, now_s: float, holder: PrefixHolder | None = None
    ) -> list[Action]:
        """A new generation, at epoch 1 on this head; None: no pipeline is known, so the
        controller is asked for one. The `holder` has more of its prompt than that head."""
        if route is None:
            return self._resume(now_s)
        self.epoch, self._prefix_holder = 1, holder
        return self._attach(route, now_s)

    def rejoin(self, view: GenerationView, now_s: float) -> list[Action]:
        """A generation that another reader began. All ids are delivered from position 0."""
        if view.state is GenerationState.CANCELLED:
            return self._end(Cancelled("the generation was cancelled"))
        self.epoch = view.epoch
        self.numerics_class = view.classes[-1] if view.classes else self.numerics_class
        self._base = view.spans
        actions = self._merge(view.spans)
        if self.ended:
            return actions
        if view.head is None:
            return [*actions, *self._resume(now_s)]
        return [*actions, *self._attach(view.head, now_s)]

    def stopped(self, choice: int, length: int) -> list[Action]:
        """The text of a choice contains a stop string; it needs no more than `length` ids."""
        if self.ended or self._finish[choice] is not None:
            return []
        self._finish[choice] = FinishReason.STOP
        name, head = self.request.generation_id, self.route
        cancel = SendCancel(name, choice, CancelReason.STOP, length, head)
        return [cancel, *self._end_if_finished()]

    def cancel(self) -> list[Action]:
        """The client gives the generation up."""
        if self.ended:
            return []
        name, head = self.request.generation_id, self.route
        cancel = SendCancel(name, None, CancelReason.CLIENT, None, head)
        return [cancel, *self._end(Cancelled("cancelled by the client"))]

    def detach(self) -> list[Action]:
        """This reader ends, its client may go on elsewhere: closes the stream, cancels nothing."""
        self.ended = True
        return self._close()

    def client_gone(self, resumable: bool) -> list[Action]:
        """The client is gone; `resumable`: it can come back by an event, not only by asking the
        same again. Detaches, and says so."""
        self.ended = True
        return self._let_go(resumable)

    def pause(self) -> list[Action]:
        """The client takes nothing: the generation yields to whoever waits, until `go_on`."""
        self._paused = self._open
        return self._let_go(True)

    def go_on(self, now_s: float) -> list[Action]:
        """The client takes something again."""
        paused, self._paused = self._paused, False
        if not paused or self.ended or self.route is None:
            return []
        return self._attach(self.route, now_s)

    def _let_go(self, resumable: bool) -> list[Action]:
        name, route = self.request.generation_id, self.route if self._open else None
        if route is None:
            return self._close()
        return [*self._close(), SendDetach(name, self.epoch, route, resumable, self._reader)]

    def finish_reason(self, choice: int) -> FinishReason | None:
        """Why a choice ended, as far as ids tell."""
        return self._finish[choice]

    # The head

    def frame(self, stream: int, frame: Frame, now_s: float) -> list[Action]:
        """A frame came."""
        if stream != self._stream or not self._open:
            return []
        self._silent_s, self._unheard_s = 0.0, None
        if isinstance(frame, Accepted):
            return self._accepted(frame.numerics_class)
        if isinstance(frame, Closed):
            return self._closed(frame, now_s)
        if self._step is not None and frame.step > self._step:
            self._at_ease()
        self._step = frame.step
        if isinstance(frame, Progress):
            return []
        if any(
            span.choice < len(self.runs) and span.start > self._verified[span.choice]
            for span in frame.spans
        ):
            return self._suspect(now_s)
        actions = self._merge(frame.spans)
        if actions:
            self._at_ease()
        return actions

    def _accepted(self, numerics_class: str) -> list[Action]:
        if not self.request.numerics_class:
            self.request = replace(self.request, numerics_class=numerics_class)
        before, self.numerics_class = self.numerics_class, numerics_class
        changed = bool(before) and before != numerics_class
        return [ArithmeticChanged(before, numerics_class)] if changed else []

    def _closed(self, frame: Closed, now_s: float) -> list[Action]:
        reason = frame.reason
        if reason is CloseReason.SUPERSEDED:
            return self._end(Superseded("a newer reader took the generation over"))
        if reason is CloseReason.DIVERGED:
            return self._end(Diverged(max(frame.lengths, default=0), 0, 0))
        self._handed_on = reason is CloseReason.HANDED_ON
        sealed = reason in (CloseReason.MOVED, CloseReason.HANDED_ON)
        return self._resume(now_s, None if sealed else LeaveReason.REFUSED)

    def broken(self, stream: int, error: ShuntError, now_s: float) -> list[Action]:
        """The stream ended without a Closed frame."""
        if stream != self._stream or not self._open:
            return []
        accepted = bool(self.request.numerics_class)
        refused_new = isinstance(error, ResourceExhausted) and self.epoch == 1 and not accepted
        if isinstance(error, _FOR_GOOD) or refused_new:
            return self._end(error)
        if isinstance(error, _ASK_ELSEWHERE):
            return self._resume(now_s, LeaveReason.REFUSED)
        return self._suspect(now_s)

    def _suspect(self, now_s: float) -> list[Action]:
        """A blip is not a death: attaches once more before it asks for another head."""
        if self._unheard_s is None:
            self._unheard_s = now_s - self._silent_s
        silent = self._silent_s >= self.settings.reach_s
        lost = self._attached_again and not (silent and self._is_reached(now_s))
        if lost or self.route is None:
            return self._resume(now_s, LeaveReason.UNREACHABLE)
        self._troubled(now_s)
        self._attached_again = True
        return [*self._close(), *self._attach(self.route, now_s)]

    def _is_reached(self, now_s: float) -> bool:
        """Others here hear from its head; in the end its own trouble counts all the same."""
        troubled_s = 0.0 if self._trouble_s is None else now_s - self._trouble_s
        settings = self.settings
        return self._all_silent_s < settings.reach_s and troubled_s < settings.recover_s

    def _attach(self, route: Route, now_s: float) -> list[Action]:
        if self.route is None or self.route.formation_id != route.formation_id:
            self._step = None
        self.route = route
        self._stream += 1
        self._open = True
        self._silent_s = self._stepless_s = 0.0
        self._ticked_s = now_s
        call = GenerateCall(
            self.request,
            self.epoch,
            route.formation_id,
            self._base,
            tuple(self._verified),
            self._kv_source,
            self._reader,
            route.hands_on,
            self.for_nobody,
            self._prefix_holder if self.epoch == 1 else None,
        )
        return [OpenStream(self._stream, route, call)]

    @property
    def _reader(self) -> str:
        """Of the present stream, or the last."""
        return f"{self._name}.{self._stream}"

    # The controller

    def _resume(self, now_s: float, reason: LeaveReason | None = None) -> list[Action]:
        """At once, but for grants in vain: those wait longer each time."""
        self._troubled(now_s)
        self._reason = reason if self.route is not None else None
        if self._in_vain:
            self._back_off(now_s)
            return self._close()
        return [*self._close(), *self._ask(now_s)]

    def _back_off(self, now_s: float) -> None:
        spread = 1 + zlib.crc32(self.request.generation_id.encode()) / 2**32
        self._ask_at_s = now_s + self._retry_s * spread
        self._retry_s = min(2 * self._retry_s, self.settings.max_retry_s)

    def _ask(self, now_s: float) -> list[Action]:
        self._question += 1
        self._asking = True
        self._ask_at_s = None
        left = self.route.formation_id if self.route is not None and self._reason else ""
        name, epoch, request = self.request.generation_id, self.epoch, self.request
        unheard_s = 0.0 if self._unheard_s is None else now_s - self._unheard_s
        if self._is_reached(now_s):
            unheard_s = min(unheard_s, self._all_silent_s)
        question = ResumeQuestion(
            name, epoch, request, self._held(), left, self._reason, unheard_s, self._handed_on
        )
        return [AskResume(self._question, question, self.settings.resume_timeout_s)]

    def _held(self) -> tuple[TokenSpan, ...]:
        return tuple(
            run.span(index, 0, None, self._finish[index])
            for index, run in enumerate(self.runs)
            if len(run) or self._finish[index] is not None
        )

    def last_question(self) -> ResumeQuestion:
        """Of a generation that has ended: has the controller keep what this reader holds of it,
        where its head is gone before it told the journal."""
        return ResumeQuestion(self.request.generation_id, self.epoch, self.request, self._held())

    def granted(self, number: int, grant: Grant, now_s: float) -> list[Action]:
        """The controller's answer."""
        if number != self._question or not self._asking:
            return []
        self._asking = self._handed_on = False
        self._in_vain = True
        if grant.head is not None and self._follows(grant.head, grant.epoch):
            return self._attach(grant.head, now_s)
        self.moves += grant.epoch > self.epoch
        self.epoch = grant.epoch
        self._base, self._kv_source = grant.base, grant.kv_source
        self._verified = [0] * len(self.runs)
        self._attached_again = False
        actions = self._merge(grant.base)
        if self.ended:
            return actions
        if grant.head is None:
            return [*actions, *self._end(DataLoss("the journal ends before the text does"))]
        return [*actions, *self._attach(grant.head, now_s)]

    def _follows(self, head: Route, epoch: int) -> bool:
        """That head lives: the reader goes on where it was, with what it compared."""
        same = self.route is not None and self.route.formation_id == head.formation_id
        return same and epoch == self.epoch

    def not_granted(self, number: int, error: ShuntError, now_s: float) -> list[Action]:
        """The controller refused, was not reached, or did not answer in time."""
        if number != self._question or not self._asking:
            return []
        self._asking = False
        if isinstance(error, (*_FOR_GOOD, Cancelled)):
            return self._end(error)
        self._back_off(now_s)
        return []

    # Time

    def tick(self, now_s: float, *, serves: bool, silent_s: float = inf) -> list[Action]:
        """Silence, lack of progress and retries. `serves`: the controller lists the formation of
        its head among those that do; `silent_s`: for so long no reader at this router has heard
        from that head."""
        if self.ended:
            return []
        self._all_silent_s = silent_s
        if self._open:
            return self._watch(now_s, serves)
        if self._trouble_s is not None and now_s - self._trouble_s >= self.settings.recover_s:
            return self._end(Unavailable("no pipeline took the generation; it can be resumed"))
        return self._ask(now_s) if self._ask_at_s is not None and now_s >= self._ask_at_s else []

    def _watch(self, now_s: float, serves: bool) -> list[Action]:
        settings = self.settings
        watched_s = min(now_s - self._ticked_s, settings.glance_s)
        self._ticked_s = now_s
        self._silent_s += watched_s
        self._stepless_s += watched_s
        if serves:
            return self._suspect(now_s) if self._silent_s >= settings.reach_s else []
        silent = self._silent_s >= settings.silence_s
        if silent or self._stepless_s >= settings.progress_s:
            return self._resume(now_s, LeaveReason.SILENT)
        return []

    def _troubled(self, now_s: float) -> None:
        self._trouble_s = now_s if self._trouble_s is None else self._trouble_s

    def _at_ease(self) -> None:
        self._stepless_s = 0.0
        self._trouble_s = None
        self._attached_again = False
        self._in_vain = False
        self._retry_s = self.settings.retry_s

    # Ids

    def _merge(self, spans: Sequence[TokenSpan]) -> list[Action]:
        """Compares and adds; what is new goes to the reader."""
        gains = []
        try:
            for span in spans:
                gain = self._merge_span(span)
                if gain is not None:
                    gains.append(gain)
        except (Diverged, InvalidArgument) as error:
            return self._end(error)
        return [*([Deliver(tuple(gains))] if gains else []), *self._end_if_finished()]

    def _merge_span(self, span: TokenSpan) -> Gain | None:
        if not 0 <= span.choice < len(self.runs):
            raise InvalidArgument("a choice that was not asked for", field="choice")
        run, before = self.runs[span.choice], len(self.runs[span.choice])
        appended = run.append(span.start, span.ids, span.logprobs, span.cached_tokens)
        self._verified[span.choice] = max(self._verified[span.choice], span.end)
        if self._finish[span.choice] is not None:
            return None
        new = span.ids[before - span.start :] if appended.added else ()
        end = finish_of(self.request, new, before)
        if end is not None:
            self._finish[span.choice] = end[1]
        elif span.end == len(run):
            self._finish[span.choice] = span.finish_reason
        if not appended.added and self._finish[span.choice] is None:
            return None
        return Gain(span.choice, before, len(run))

    # Inside

    def _close(self) -> list[Action]:
        if not self._open:
            return []
        self._open = False
        return [CloseStream(self._stream)]

    def _end_if_finished(self) -> list[Action]:
        if not all(self._finish):
            return []
        if FinishReason.GRAMMAR in self._finish:
            return self._end(
                InvalidArgument(
                    "what the answer had to follow became too much to go on with", field="grammar"
                )
            )
        return self._end(None)

    def _end(self, error: ShuntError | None) -> list[Action]:
        self.ended = True
        self._asking = False
        return [*self._close(), End(error)]
