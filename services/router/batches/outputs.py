"""Results of a batch where files are kept: in pieces while it lasts, then joined into two files."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TypeVar

from services.common.errors import (
    AlreadyExists,
    DeadlineExceeded,
    ResourceExhausted,
    ShuntError,
    Unavailable,
)
from services.router.core.batches.batch import Batch, Piece
from services.router.core.files import Purpose, StoredFile
from services.router.files.files import Files

_log = logging.getLogger(__name__)
T = TypeVar("T")

AGAIN_S = 0.5
AWAY = (Unavailable, DeadlineExceeded, ResourceExhausted)
"""What does not answer, or has no room, and may yet."""


async def persisted(ask: Callable[[], Awaitable[T]]) -> T:
    """Asks until it is answered: a batch waits for what is away as long as its loan lasts."""
    while True:
        try:
            return await ask()
        except AWAY as error:
            _log.warning("a batch waits", extra={"reason": error.message})
            await asyncio.sleep(AGAIN_S)


class Outputs:
    """What one holder of a batch writes."""

    def __init__(self, files: Files, files_keep_s: float, wall_clock: Callable[[], float]) -> None:
        self._files = files
        self._files_keep_s = files_keep_s
        self._wall_clock = wall_clock
        self._pieces = 0

    async def piece(self, batch: Batch, data: bytes, failed: bool) -> Piece:
        """Written under a name that no other holder of the batch gives."""
        self._pieces += 1
        name = f"pieces/{batch.batch_id}/{batch.lease}-{self._pieces}"

        async def parts() -> AsyncIterator[bytes]:
            yield data

        await persisted(lambda: self._files.write(name, parts()))
        return Piece(name, failed, len(data))

    async def joined(self, batch: Batch) -> tuple[str | None, str | None]:
        """The files of answers and of failures, where there are any; done again, the same come of
        it. Raises NotFound for a piece that is gone."""
        answers = await self._file(batch, "output", False)
        return answers, await self._file(batch, "errors", True)

    async def drop(self, pieces: Iterable[Piece]) -> None:
        """They are in the files."""
        for piece in pieces:
            with suppress(ShuntError):  # what is left is swept
                await asyncio.to_thread(self._files.place.delete, piece.name)

    async def _file(self, batch: Batch, what: str, failed: bool) -> str | None:
        pieces = [piece for piece in batch.pieces if piece.failed is failed]
        if not pieces:
            return None
        drawn = hashlib.sha256(f"{batch.batch_id}/{what}".encode()).hexdigest()[:24]
        created = int(self._wall_clock())
        expires = created + int(self._files_keep_s)
        if batch.output_expires_s is not None:
            expires = batch.created_unix_s + batch.output_expires_s
        file = StoredFile(
            f"file-{drawn}",
            batch.tenant,
            f"{batch.batch_id}_{what}.jsonl",
            Purpose.BATCH_OUTPUT,
            sum(piece.size_bytes for piece in pieces),
            created,
            expires,
        )

        async def parts() -> AsyncIterator[bytes]:
            for piece in pieces:
                async for part in self._files.read(piece.name):
                    yield part

        await persisted(lambda: self._files.write(file.name, parts()))
        with suppress(AlreadyExists):  # whoever had the batch before came as far
            await persisted(lambda: self._files.enter(file))
        return file.file_id
