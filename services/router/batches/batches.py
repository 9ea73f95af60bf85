"""What clients do with batches: make them, look at them, cancel them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import Any

from services.common.errors import Aborted, AlreadyExists, InvalidArgument, NotFound
from services.router.batches.requests import parse_batch
from services.router.core.batches.batch import KIND, Batch, batch_of
from services.router.core.files import Purpose
from services.router.documents import DocumentClient
from services.router.files.files import Files


class Batches:
    """All batches of a mesh, through one router."""

    def __init__(
        self,
        documents: DocumentClient,
        files: Files,
        wake: Callable[[], None],
        wall_clock: Callable[[], float],
    ) -> None:
        """`wake` is called when there is a new one."""
        self._documents = documents
        self._files = files
        self._wake = wake
        self._wall_clock = wall_clock

    async def create(
        self, body: dict[str, Any], tenant: str, models: frozenset[str] | None, key: str
    ) -> Batch:
        """A new batch, or the one that the same key of this tenant named. Raises InvalidArgument,
        AlreadyExists for another batch under the key."""
        batch_id = f"batch_{_named(tenant, key) if key else secrets.token_hex(12)}"
        batch = parse_batch(body, batch_id, tenant, models, int(self._wall_clock()))
        try:
            file = await self._files.get(tenant, batch.input_file_id)
        except NotFound:
            said = f"there is no file {batch.input_file_id[:64]}"
            raise InvalidArgument(said, field="input_file_id") from None
        if file.purpose is not Purpose.BATCH:
            raise InvalidArgument(
                f"input_file_id: the file's purpose is {file.purpose}, not batch",
                field="input_file_id",
            )
        try:
            made = batch_of(await self._documents.put(batch.document()))
        except AlreadyExists:
            made = await self.get(tenant, batch_id)
            if not made.same_ask(batch):
                raise AlreadyExists("another batch has this key", field="idempotency-key") from None
        self._wake()
        return made

    async def get(self, tenant: str, batch_id: str) -> Batch:
        """Raises NotFound for another tenant's, too."""
        try:
            batch = batch_of(await self._documents.get(KIND, batch_id))
        except (NotFound, InvalidArgument):
            raise _unknown(batch_id) from None
        if batch.tenant != tenant:
            raise _unknown(batch_id)
        return batch

    async def page(self, tenant: str, after: str, limit: int) -> tuple[list[Batch], bool]:
        """Batches of a tenant behind one, the newest first, and whether there are others. Raises
        NotFound."""
        found: list[Batch] = []
        more = True
        while more and len(found) < limit:
            documents, more = await self._documents.page(KIND, tenant, after, limit - len(found))
            found += map(batch_of, documents)
            after = found[-1].batch_id if found else after
        return found, more

    async def cancel(self, tenant: str, batch_id: str) -> Batch:
        """Nothing more of it is asked. Raises NotFound, FailedPrecondition for one that has
        ended."""
        while True:
            batch = await self.get(tenant, batch_id)
            cancelling = batch.cancelling(self._wall_clock())
            if cancelling is batch:
                return batch
            try:
                return batch_of(await self._documents.put(cancelling.document()))
            except Aborted:  # it changed meanwhile
                continue


def _named(tenant: str, key: str) -> str:
    return hashlib.sha256(f"{len(tenant)}/{tenant}/{key}".encode()).hexdigest()[:24]


def _unknown(batch_id: str) -> NotFound:
    return NotFound(f"there is no batch {batch_id[:64]}", field="id")
