"""One batch, what is kept of it and around it, and runners that come and go."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence

from services.common.documents import Document
from services.common.errors import NotFound, StaleEpoch, Unavailable
from services.controller.core.documents import Documents, DocumentSettings, Kept
from services.router.batches.answering import Answered
from services.router.batches.work import BatchWork, UnderWay, WorkSettings
from services.router.core.batches.batch import Batch, Usage, batch_of
from services.router.core.batches.lines import Line, response_line
from services.router.core.batches.window import Window
from services.router.core.files import file_of, name_of
from services.router.files.files import Files
from services.router.session import Session

LEASE_S = 1.0
LINES = 30


class Memory:
    """A place that forgets what was not committed, as a dead process does."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def writer(self, name: str) -> MemoryWriter:
        return MemoryWriter(self, name)

    def size(self, name: str) -> int | None:
        return len(self.kept[name]) if name in self.kept else None

    def read(self, name: str, start: int, stop: int) -> bytes:
        if name not in self.kept:
            raise NotFound(f"{name} is not kept", field="file_id")
        return self.kept[name][start:stop]

    def delete(self, name: str) -> None:
        self.kept.pop(name, None)

    def names(self, folder: str) -> Iterator[tuple[str, float]]:
        return iter([(name, 0.0) for name in self.kept if name.startswith(f"{folder}/")])

    def sweep(self, before_s: float) -> None: ...


class MemoryWriter:
    def __init__(self, place: Memory, name: str) -> None:
        self._place, self._name, self._data = place, name, b""

    def write(self, data: bytes) -> None:
        self._data += data

    def commit(self) -> None:
        self._place.kept[self._name] = self._data

    def abort(self) -> None: ...


class Controller:
    """The controller's core behind calls that fail as calls do, their effect made or not."""

    def __init__(self, chance: random.Random, faults: float) -> None:
        self.documents = Documents(DocumentSettings(lease_s=LEASE_S))
        self.now_s = 0.0
        self.unix_s = 1000.0
        self._chance = chance
        self._faults = faults

    async def _call(self) -> None:
        await asyncio.sleep(0)
        if self._chance.random() < self._faults:
            raise Unavailable("lost on its way")

    async def claim(self, kinds: Sequence[str]) -> tuple[Document | None, float]:
        await self._call()
        kept = self.documents.claim(kinds, self.now_s, self.unix_s)
        if kept is None:
            return None, LEASE_S
        self.documents.keep(kept)
        self.documents.lend(kept.document, self.now_s)
        return kept.document, LEASE_S

    async def delete(self, kind: str, document_id: str) -> None:
        await self._call()
        self.documents.forget(self.documents.get(kind, document_id).key)

    async def get(self, kind: str, document_id: str) -> Document:
        await self._call()
        return self.documents.get(kind, document_id)

    async def put(self, document: Document, *, holds_lease: bool = False) -> Document:
        await self._call()
        kept = self.documents.put(document, holds_lease=holds_lease)
        self.documents.keep(kept)
        await self._call()
        return kept.document

    async def renew(self, document: Document, *, give_back: bool = False) -> Document:
        await self._call()
        return self.documents.renew(
            document.kind, document.document_id, document.lease, self.now_s, give_back=give_back
        )

    def lend(self) -> Document:
        kept: Kept | None = self.documents.claim(("batch",), self.now_s, self.unix_s)
        assert kept is not None
        self.documents.keep(kept)
        self.documents.lend(kept.document, self.now_s)
        return kept.document


class Answers:
    """Answers lines after a while; some fail, some are told to come again."""

    def __init__(self, chance: random.Random) -> None:
        self.asked: Counter[str] = Counter()
        self.given_up: list[int] = []
        self.sessions: set[Session] = set()
        self.holds = False
        self._chance = chance

    async def answer(self, batch: Batch, line: Line) -> Answered:
        self.asked[line.custom_id] += 1
        for _ in range(self._chance.randrange(4)):
            await asyncio.sleep(0)
        if self.holds:
            await asyncio.get_running_loop().create_future()
        if self._chance.random() < 0.1:
            raise Unavailable("no pipeline")
        failed = line.number % 7 == 3
        body = json.dumps({"n": line.number}).encode()
        status = 400 if failed else 200
        result = response_line(batch.batch_id, line, status, "r", body)
        return Answered(result, None if failed else Usage(2, 3))

    async def give_up(self, batch: Batch, number: int) -> None:
        self.given_up.append(number)


class Stage:
    """One batch, and runners that come and go."""

    def __init__(self, seed: int, faults: float = 0.05, lines: int = LINES) -> None:
        chance = random.Random(seed)
        self.chance = chance
        self.place = Memory()
        self.controller = Controller(chance, faults)
        self.answers = Answers(chance)
        self.under_way = UnderWay(Window(8, 8, 0.0))
        self.files = Files(self.place, self.controller, lambda: self.controller.unix_s)  # type: ignore[arg-type]
        self.place.kept[name_of("file-in")] = b"".join(
            json.dumps(
                {
                    "custom_id": f"line-{n}",
                    "method": "POST",
                    "url": "/v1/completions",
                    "body": {"model": "m"},
                }
            ).encode()
            + b"\n"
            for n in range(lines)
        )
        first = Batch("batch_x", "t", "/v1/completions", "file-in", 1000, 1000 + 86400)
        kept = self.controller.documents.put(first.document(), holds_lease=False)
        self.controller.documents.keep(kept)

    @property
    def batch(self) -> Batch:
        return batch_of(self.controller.documents.get("batch", "batch_x"))

    def runner(self) -> BatchWork:
        return BatchWork(
            batch_of(self.controller.lend()),
            LEASE_S,
            WorkSettings(max_line_bytes=1000, files_keep_s=3600, batches_keep_s=3600),
            documents=self.controller,  # type: ignore[arg-type]
            files=self.files,
            answering=self.answers,  # type: ignore[arg-type]
            under_way=self.under_way,
            clock=lambda: self.controller.now_s,
            wall_clock=lambda: self.controller.unix_s,
        )

    async def killed(self, work: BatchWork, after: int) -> None:
        """Runs it for so many turns of the loop, and then no further."""
        task = asyncio.create_task(work.run())
        for _ in range(after):
            if task.done():
                break
            self.controller.now_s += 0.01
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert self.under_way.lines == 0

    async def ended(self) -> Batch:
        while not self.batch.ended:
            try:
                await self.ticking(self.runner())
            except (StaleEpoch, Unavailable):
                self.controller.now_s += LEASE_S
        return self.batch

    async def ticking(self, work: BatchWork) -> None:
        task = asyncio.create_task(work.run())
        while not task.done():
            self.controller.now_s += 0.01
            await asyncio.sleep(0)
        task.result()

    def results(self) -> list[dict[str, object]]:
        """All lines of both files, once it has ended."""
        lines: list[bytes] = []
        for file_id in (self.batch.output_file_id, self.batch.error_file_id):
            if file_id is not None:
                file = file_of(self.controller.documents.get("file", file_id))
                data = self.place.kept[file.name]
                assert len(data) == file.size_bytes
                lines += data.splitlines()
        return [json.loads(line) for line in lines]
