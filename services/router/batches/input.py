"""The lines of a batch's input file, read from where files are kept as they are wanted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from services.router.core.batches.batch import Batch
from services.router.core.batches.lines import Inspection, Line, LineCutter, LineFault, line_of
from services.router.core.files import name_of
from services.router.files.files import Files

LARGE_LINE_BYTES = 256 << 10
"""Read in a thread of its own."""


class Input:
    """One batch's input file."""

    def __init__(self, files: Files, batch: Batch, max_line_bytes: int) -> None:
        self._files = files
        self._batch = batch
        self._most = max_line_bytes

    async def inspected(self) -> Inspection:
        """What is to be said of the file before any line is asked. Raises NotFound when it is gone,
        Unavailable."""
        inspection = Inspection(self._batch.endpoint)
        cutter = LineCutter(self._most)

        def look(data: bytes | None) -> None:
            try:
                for _, line in cutter.last() if data is None else cutter.lines(data):
                    inspection.look_at(line)
            except LineFault as fault:  # what comes behind it cannot be told apart
                inspection.broken(fault)

        async for data in self._files.read(name_of(self._batch.input_file_id)):
            await asyncio.to_thread(look, data)
            if inspection.hopeless:
                return inspection
        await asyncio.to_thread(look, None)
        inspection.end()
        return inspection

    async def lines(self, batch: Batch) -> AsyncIterator[Line]:
        """Lines that have no result in this batch. Raises NotFound, Unavailable."""
        cutter = LineCutter(self._most)
        async for data in self._files.read(name_of(batch.input_file_id)):
            for number, line in cutter.lines(data):
                if number not in batch.done:
                    yield await self._read(number, line)
        for number, line in cutter.last():
            if number not in batch.done:
                yield await self._read(number, line)

    async def _read(self, number: int, data: bytes) -> Line:
        if len(data) > LARGE_LINE_BYTES:
            return await asyncio.to_thread(line_of, number, data, self._batch.endpoint)
        return line_of(number, data, self._batch.endpoint)
