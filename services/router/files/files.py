"""Files of tenants: bytes in the place, their entries at the controller.

A file is there when its entry is, which is made last; what has bytes and no entry is swept.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import suppress

from services.common.documents import Document
from services.common.errors import InvalidArgument, NotFound
from services.router.core.files import KIND, Purpose, StoredFile, file_of
from services.router.documents import DocumentClient
from services.router.files.place import Place

PART_BYTES = 1 << 20
"""Read, and written, at a time."""


class Files:
    """All files of a mesh, through one router."""

    def __init__(
        self, place: Place, documents: DocumentClient, wall_clock: Callable[[], float]
    ) -> None:
        self.place = place
        self._documents = documents
        self._wall_clock = wall_clock

    async def write(self, name: str, parts: AsyncIterable[bytes]) -> int:
        """Puts bytes under a name in the place, as they come; how many. Nothing of them stays where
        an error ends this. Raises ResourceExhausted, Unavailable, and what `parts` raises."""
        writer = await asyncio.to_thread(self.place.writer, name)
        size_bytes, waiting = 0, bytearray()
        try:
            async for part in parts:
                size_bytes += len(part)
                waiting += part
                if len(waiting) >= PART_BYTES:
                    await asyncio.to_thread(writer.write, bytes(waiting))
                    waiting.clear()
            await asyncio.to_thread(writer.write, bytes(waiting))
            await asyncio.to_thread(writer.commit)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(writer.abort))
            raise
        return size_bytes

    async def read(self, name: str, start: int = 0) -> AsyncIterator[bytes]:
        """The bytes under a name, in parts. Raises NotFound, Unavailable."""
        while part := await asyncio.to_thread(self.place.read, name, start, start + PART_BYTES):
            yield part
            start += len(part)

    def drawn(self, tenant: str, filename: str, purpose: Purpose, size_bytes: int) -> StoredFile:
        """A new file, that nobody knows of yet."""
        file_id = f"file-{secrets.token_hex(12)}"
        created = int(self._wall_clock())
        return StoredFile(file_id, tenant, filename, purpose, size_bytes, created)

    async def enter(self, file: StoredFile) -> None:
        """Its bytes are there, and it is from now on. Raises AlreadyExists."""
        await self._documents.put(file.document())

    async def get(self, tenant: str, file_id: str) -> StoredFile:
        """Raises NotFound for another tenant's too, and for one that has expired."""
        try:
            file = file_of(await self._documents.get(KIND, file_id))
        except (NotFound, InvalidArgument):
            raise _unknown(file_id) from None
        if file.tenant != tenant or self._expired(file):
            raise _unknown(file_id)
        return file

    async def page(
        self,
        tenant: str,
        after: str,
        limit: int,
        purpose: str,
        *,
        oldest_first: bool,
    ) -> tuple[list[StoredFile], bool]:
        """Files of a tenant behind one, and whether there are others. Raises NotFound."""
        found: list[StoredFile] = []
        async for document in self._documents.pages(KIND, tenant, after, oldest_first=oldest_first):
            file = file_of(document)
            if self._expired(file) or purpose not in ("", file.purpose):
                continue
            if len(found) == limit:
                return found, True
            found.append(file)
        return found, False

    async def delete(self, tenant: str, file_id: str) -> None:
        """Entry and bytes. Raises NotFound."""
        await self.forget(await self.get(tenant, file_id))

    async def forget(self, file: StoredFile) -> None:
        """It is no more, whoever's it was."""
        with suppress(NotFound):
            await self._documents.delete(KIND, file.file_id)
        await asyncio.to_thread(self.place.delete, file.name)

    async def expired(self, document: Document) -> None:
        """Its time is over."""
        await self.forget(file_of(document))

    def _expired(self, file: StoredFile) -> bool:
        expires = file.expires_unix_s
        return expires is not None and expires <= self._wall_clock()


def _unknown(file_id: str) -> NotFound:
    return NotFound(f"there is no file {file_id[:64]}", field="id")
