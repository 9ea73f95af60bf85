"""One batch at work at the router that has its lease.

Whatever happens to this process, the batch's document says what is done: results count when a put
of it names the piece they lie in. Lines that were asked and whose results were lost are asked again
under the same generation ids, so that their answers come from the journal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from services.common.errors import (
    Aborted,
    NotFound,
    ShuntError,
    StaleEpoch,
)
from services.router import metrics
from services.router.batches.answering import PASSING, Answering
from services.router.batches.input import Input
from services.router.batches.outputs import AGAIN_S, AWAY, Outputs, persisted
from services.router.core.batches.batch import KIND, Batch, Fault, Status, batch_of
from services.router.core.batches.lines import Line, unanswered_line
from services.router.core.batches.results import PIECE_BYTES, Results
from services.router.core.batches.window import Window
from services.router.documents import DocumentClient
from services.router.files.files import Files

_log = logging.getLogger(__name__)
T = TypeVar("T")

LONGEST_PAUSE_S = 15.0
RENEWALS = 4
"""In the time that a loan lasts."""
_CANCELLED = ("batch_cancelled", "This request was not executed: its batch was cancelled.")
_EXPIRED = ("batch_expired", "This request was not executed before the completion window expired.")


@dataclass(slots=True)
class UnderWay:
    """Lines of all batches of a router that were asked and have no answer yet."""

    window: Window
    lines: int = 0

    def begin(self) -> None:
        """One more was asked."""
        self._count(self.lines + 1)

    def end(self) -> None:
        """One less has no answer."""
        self._count(self.lines - 1)

    def _count(self, lines: int) -> None:
        self.lines = lines
        metrics.BATCH_LINES_UNDER_WAY.set(lines)
        metrics.BATCH_WINDOW.set(self.window.size)


@dataclass(frozen=True, slots=True)
class WorkSettings:
    """Limits and timings."""

    max_line_bytes: int
    files_keep_s: float
    batches_keep_s: float


class BatchWork:
    """From where its document says that it stands to its end, or to the end of the loan."""

    def __init__(
        self,
        batch: Batch,
        lease_s: float,
        settings: WorkSettings,
        *,
        documents: DocumentClient,
        files: Files,
        answering: Answering,
        under_way: UnderWay,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._batch = batch
        self._lease_s = lease_s
        self._settings = settings
        self._documents = documents
        self._answering = answering
        self._under_way = under_way
        self._clock = clock
        self._wall_clock = wall_clock
        self._results = Results()
        self._outputs = Outputs(files, settings.files_keep_s, wall_clock)
        self._outcome = "failed"
        """Of what comes without an answer of status 200."""
        self._changed = asyncio.Event()
        """A line was answered, or the batch is no longer what it was."""
        self._input = Input(files, batch, settings.max_line_bytes)

    async def run(self) -> None:
        """Raises StaleEpoch when somebody else works on it, NotFound when it is gone, and
        Unavailable when that cannot be known any more."""
        work = asyncio.create_task(self._work())
        renewing = asyncio.create_task(self._keep_lease())
        try:
            await asyncio.wait((work, renewing), return_when=asyncio.FIRST_COMPLETED)
            for task in (work, renewing):
                if task.done():
                    task.result()
        finally:
            for task in (work, renewing):
                task.cancel()
            await asyncio.gather(work, renewing, return_exceptions=True)

    async def _keep_lease(self) -> None:
        renewed_s = self._clock()
        while True:
            await asyncio.sleep(self._lease_s / RENEWALS)
            asked_s = self._clock()
            try:
                document = await self._documents.renew(self._batch.document())
            except AWAY:
                if self._clock() - renewed_s >= self._lease_s:
                    raise
                continue
            renewed_s = asked_s
            if document.version > self._batch.version:
                self._batch = batch_of(document)
            self._changed.set()

    async def leave(self) -> None:
        """Notes what has come and gives the batch back, once `run` has ended by being cancelled."""
        await self._note()
        await self._documents.renew(self._batch.document(), give_back=True)

    async def _work(self) -> None:
        try:
            if self._batch.status is Status.VALIDATING:
                await self._validate()
            if self._batch.status in (Status.IN_PROGRESS, Status.CANCELLING):
                await self._answer_all()
        except NotFound as error:
            if error.field != "file_id":
                raise
            await self._note()
            await self._fail("the input file is no longer there")
        if not self._batch.ended:
            await self._finish()

    async def _validate(self) -> None:
        inspection = await persisted(self._input.inspected)

        def judged(batch: Batch) -> Batch:
            if batch.status is not Status.VALIDATING:
                return batch
            now_s = self._wall_clock()
            if inspection.faults:
                return replace(
                    batch.refused(inspection.faults, now_s),
                    kept_until_unix_s=int(now_s + self._settings.batches_keep_s),
                )
            return batch.validated(inspection.model, inspection.total, now_s)

        await self._put(judged)

    async def _fail(self, why: str) -> None:
        """Its files are gone; what is left of its results is given out."""
        output, errors = None, None
        with suppress(NotFound):
            output, errors = await self._outputs.joined(self._batch)
        fault, pieces = Fault("file_not_found", why), self._batch.pieces
        now_s, keep_s = self._wall_clock(), self._settings.batches_keep_s
        await self._put(
            lambda batch: replace(
                batch.end(Status.FAILED, output, errors, now_s, keep_s), faults=(fault,)
            )
        )
        await self._outputs.drop(pieces)

    @property
    def _stops(self) -> bool:
        """No further line is to be asked."""
        batch = self._batch
        return (
            batch.status is Status.CANCELLING
            or batch.expiring
            or self._wall_clock() >= batch.expires_unix_s
        )

    async def _answer_all(self) -> None:
        if not self._batch.total:
            return  # cancelled before its lines were known
        asked: dict[asyncio.Task[None], int] = {}
        enough = asyncio.Event()
        noting = asyncio.create_task(self._note_in_time(enough))
        try:
            async for line in self._unanswered_yet():
                await self._room(asked)
                if self._stops:
                    break
                self._under_way.begin()
                task = asyncio.create_task(self._answer(line))
                task.add_done_callback(self._settle)  # also of one that never began
                asked[task] = line.number
            while asked and not self._stops:
                await self._settled(asked)
        except BaseException:
            noting.cancel()
            raise
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        enough.set()
        await noting  # not cancelled: of a put whose answer is lost nobody knows whether it counts
        if self._stops and len(self._batch.done) < self._batch.total:
            given_up = [number for task, number in asked.items() if task.cancelled()]
            await self._close_open_lines(given_up)

    async def _unanswered_yet(self) -> AsyncIterator[Line]:
        """Lines without a result, through faults that pass; each once."""
        told: set[int] = set()
        while True:
            try:
                async for line in self._input.lines(self._batch):
                    if line.number not in told:
                        told.add(line.number)
                        yield line
                return
            except AWAY as error:
                _log.warning("files cannot be read", extra={"reason": error.message})
                await asyncio.sleep(AGAIN_S)

    async def _room(self, asked: dict[asyncio.Task[None], int]) -> None:
        """Returns when one more line may be asked, or none is to be."""
        while not self._stops:
            window, lines = self._under_way.window, self._under_way.lines
            if window.free(lines, self._clock()):
                return
            await self._settled(asked)

    async def _settled(self, asked: dict[asyncio.Task[None], int]) -> None:
        """Something happened, or a moment passed, for the window is other batches' too."""
        with suppress(TimeoutError):
            async with asyncio.timeout(AGAIN_S):
                await self._changed.wait()
        self._changed.clear()
        for task in [task for task in asked if task.done()]:
            task.result()
            del asked[task]

    def _settle(self, task: asyncio.Task[None]) -> None:
        self._under_way.end()
        self._changed.set()

    async def _answer(self, line: Line) -> None:
        under_way, pause_s = self._under_way, AGAIN_S
        while True:
            try:
                answered = await self._answering.answer(self._batch, line)
                break
            except PASSING as error:
                _log.debug("a line waits", extra={"reason": error.message})
                under_way.window.refused(self._clock(), pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        under_way.window.answered(under_way.lines)
        self._results.add(line.number, answered.result, answered.usage, self._clock())

    async def _note_in_time(self, enough: asyncio.Event) -> None:
        while not enough.is_set():
            age_s = self._wall_clock() - self._batch.began_unix_s
            due_in_s = self._results.due_in_s(age_s, self._clock())
            if due_in_s == 0:
                await self._note()
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S if due_in_s is None else min(due_in_s, AGAIN_S)):
                    await enough.wait()
        await self._note()

    async def _note(self) -> None:
        """What has come is done."""
        results, self._results = self._results, Results()
        if not results.lines:
            return
        pieces = [
            await self._outputs.piece(self._batch, bytes(data), failed)
            for data, failed in ((results.answered, False), (results.failed, True))
            if data
        ]
        await self._put(
            lambda batch: (
                batch
                if batch.holds(pieces)
                else batch.noted(results.lines, results.failures, results.usage, pieces)
            )
        )
        metrics.BATCH_LINES.labels("answered").inc(len(results.lines) - results.failures)
        metrics.BATCH_LINES.labels(self._outcome).inc(results.failures)

    async def _close_open_lines(self, given_up: Iterable[int]) -> None:
        """What has no answer gets none: its lines say why."""
        cancelled = self._batch.status is Status.CANCELLING
        if not cancelled:
            await self._put(lambda batch: batch if batch.expiring else batch.overdue())
        for number in given_up:
            with suppress(ShuntError):  # what still runs is parked, and ends by itself
                await self._answering.give_up(self._batch, number)
        self._outcome = "unasked"
        code, message = _CANCELLED if self._batch.status is Status.CANCELLING else _EXPIRED
        async for line in self._unanswered_yet():
            result = unanswered_line(self._batch.batch_id, line, code, message)
            self._results.add(line.number, result, None, self._clock())
            if len(self._results.failed) >= PIECE_BYTES:
                await self._note()
        await self._note()

    async def _finish(self) -> None:
        """Puts the pieces together; done again, the same files come of it."""
        now_s, keep_s = self._wall_clock(), self._settings.batches_keep_s
        await self._put(
            lambda batch: batch.finalizing(now_s) if batch.last is Status.COMPLETED else batch
        )
        try:
            output, errors = await self._outputs.joined(self._batch)
        except NotFound:
            await self._fail("results are no longer there")
            return
        pieces = self._batch.pieces
        await self._put(
            lambda batch: (
                batch if batch.ended else batch.end(batch.last, output, errors, now_s, keep_s)
            )
        )
        await self._outputs.drop(pieces)

    async def _put(self, change: Callable[[Batch], Batch]) -> None:
        """Makes the change durable, upon whatever others have changed meanwhile."""
        while True:
            changed = change(self._batch)
            if changed is self._batch:
                return
            try:
                document = await persisted(
                    lambda changed=changed: self._documents.put(  # type: ignore[misc]
                        changed.document(), holds_lease=True
                    )
                )
            except StaleEpoch:
                raise
            except Aborted:
                lease = self._batch.lease
                document = await persisted(lambda: self._documents.get(KIND, self._batch.batch_id))
                if document.lease != lease:
                    raise StaleEpoch("another one works on this batch", field="lease") from None
                self._batch = batch_of(document)
                continue
            self._batch = batch_of(document)
            return
