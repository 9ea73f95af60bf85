"""Works on batches that the controller lends this router, and sees to what has had its time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from services.common.documents import Document
from services.common.errors import NotFound, ShuntError
from services.router.batches.answering import Answering
from services.router.batches.work import BatchWork, UnderWay, WorkSettings
from services.router.core import files as core_files
from services.router.core.batches import batch as core_batch
from services.router.core.batches.batch import batch_of
from services.router.core.batches.window import Window
from services.router.documents import DocumentClient
from services.router.files.files import Files
from services.router.router import Router
from services.router.settings import RouterSettings

_log = logging.getLogger(__name__)
FIRST_WINDOW = 8
LOOK_S = 0.25
"""Between two looks at live requests."""
SWEEP_S = 3600.0
LEFT_BEHIND_S = 24 * 3600.0
"""What has no entry is removed when it is older."""
LEAVE_S = 2.0


class BatchRunner:
    """A task of the router's."""

    def __init__(
        self,
        router: Router,
        documents: DocumentClient,
        files: Files,
        settings: RouterSettings,
        wall_clock: Callable[[], float],
    ) -> None:
        self._router = router
        self._documents = documents
        self._files = files
        self._settings = settings
        self._wall_clock = wall_clock
        self._answering = Answering(router)
        self._under_way = UnderWay(
            Window(FIRST_WINDOW, settings.max_batch_lines_at_once, settings.batch_settle_s)
        )
        self._running: dict[asyncio.Task[None], BatchWork] = {}
        self._news = asyncio.Event()

    def wake(self) -> None:
        """There is a batch that nobody has looked at."""
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._claim())
                tasks.create_task(self._look())
                tasks.create_task(self._sweep())
        finally:
            await self._leave()

    async def _claim(self) -> None:
        while True:
            self._news.clear()
            try:
                while len(self._running) < self._settings.max_batches_at_once:
                    document, lease_s = await self._documents.claim(
                        (core_batch.KIND, core_files.KIND)
                    )
                    if document is None:
                        break
                    try:
                        await self._begin(document, lease_s)
                    except ShuntError as error:  # the next one may fare better
                        facts = {"kind": document.kind, "document_id": document.document_id}
                        _log.error("left undone", extra={**facts, "reason": error.message})
            except ShuntError as error:
                _log.debug("nothing was lent", extra={"reason": error.message})
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.batch_poll_s):
                    await self._news.wait()

    async def _begin(self, document: Document, lease_s: float) -> None:
        if document.kind == core_files.KIND:
            await self._files.expired(document)
            return
        batch = batch_of(document)
        if batch.ended:
            await self._documents.delete(document.kind, document.document_id)
            return
        work = BatchWork(
            batch,
            lease_s,
            WorkSettings(
                max_line_bytes=self._settings.max_body_bytes,
                files_keep_s=self._settings.files_keep_s,
                batches_keep_s=self._settings.batches_keep_s,
            ),
            documents=self._documents,
            files=self._files,
            answering=self._answering,
            under_way=self._under_way,
            clock=time.monotonic,
            wall_clock=self._wall_clock,
        )
        task = asyncio.create_task(self._work(batch.batch_id, work))
        self._running[task] = work
        task.add_done_callback(self._done)

    async def _work(self, batch_id: str, work: BatchWork) -> None:
        facts = {"batch_id": batch_id}
        _log.info("batch taken up", extra=facts)
        try:
            await work.run()
        except ShuntError as error:
            _log.warning("batch let go", extra={**facts, "reason": error.message})
        except Exception:
            _log.exception("a batch failed", extra=facts)
        else:
            _log.info("batch ended", extra=facts)

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._running.pop(task, None)
            self._news.set()

    async def _look(self) -> None:
        """Batches leave to live requests what these wait for."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._answering.sessions and self._router.live_waits(
                self._answering.sessions, self._settings.batch_yield_s
            ):
                self._under_way.window.live_waits(time.monotonic())

    async def _sweep(self) -> None:
        while True:
            try:
                await self._remove_left_behind()
            except ShuntError as error:
                _log.info("files not swept", extra={"reason": error.message})
            await asyncio.sleep(SWEEP_S)

    async def _remove_left_behind(self) -> None:
        before_s, place = self._wall_clock() - LEFT_BEHIND_S, self._files.place
        await asyncio.to_thread(place.sweep, before_s)
        for folder, kind in (("files", core_files.KIND), ("pieces", core_batch.KIND)):
            for name, since_s in await asyncio.to_thread(lambda f=folder: list(place.names(f))):  # type: ignore[misc]
                if since_s < before_s and await self._is_nobodys(kind, name.split("/")[1]):
                    await asyncio.to_thread(place.delete, name)

    async def _is_nobodys(self, kind: str, document_id: str) -> bool:
        try:
            document = await self._documents.get(kind, document_id)
        except NotFound:
            return True
        return kind == core_batch.KIND and batch_of(document).ended

    async def _leave(self) -> None:
        """Others may go on with what runs here at once."""
        running, self._running = self._running, {}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await asyncio.gather(
                    *(work.leave() for work in running.values()), return_exceptions=True
                )
