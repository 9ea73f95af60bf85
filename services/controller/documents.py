"""Documents with their journal: what is answered is durable, and no other controller leads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from shuntserve.controller.v1 import controller_pb2 as pb

from services.common.documents import Document
from services.common.wire_documents import document_from, document_to
from services.controller.core.documents import Documents, DocumentSettings, Kept, note_of
from services.controller.journal.journal import Journal, Saved

T = TypeVar("T")


class DocumentRuntime:
    """Changes wait for each other: the next one is judged by what the journal took of the last.

    What the journal failed to take is not known here, and whoever asked for it is told so: it puts
    the same again. A change that was begun is carried through, though its caller may have left.
    """

    def __init__(
        self,
        settings: DocumentSettings,
        journal: Journal,
        saved: Mapping[str, str],
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._documents = Documents.recover(settings, saved, clock())
        self._journal = journal
        self._clock = clock
        self._wall_clock = wall_clock
        self._changing = asyncio.Lock()

    @property
    def lease_s(self) -> float:
        """How long a loan lasts that is not renewed."""
        return self._settings.lease_s

    async def get(self, kind: str, document_id: str) -> Document:
        """Raises InvalidArgument, NotFound, and what `Journal.settled` does."""
        await self._journal.settled()
        return self._documents.get(kind, document_id)

    async def page(
        self, kind: str, tenant: str, after: str, limit: int, *, oldest_first: bool
    ) -> tuple[Sequence[Document], bool]:
        """Raises as `Documents.page`, and as `Journal.settled`."""
        await self._journal.settled()
        return self._documents.page(kind, tenant, after, limit, oldest_first=oldest_first)

    async def put(self, document: Document, *, holds_lease: bool) -> Document:
        """Raises as `Documents.put`, and as `Journal.write`."""
        return await _carried_through(self._put(document, holds_lease))

    async def _put(self, document: Document, holds_lease: bool) -> Document:
        async with self._changing:
            kept = self._documents.put(document, holds_lease=holds_lease)
            await self._keep(kept)
            if holds_lease and kept.document.due_unix_s is not None:
                self._documents.lend(kept.document, self._clock())
            return kept.document

    async def delete(self, kind: str, document_id: str) -> None:
        """Raises InvalidArgument, NotFound, and as `Journal.write`."""
        await _carried_through(self._delete(kind, document_id))

    async def _delete(self, kind: str, document_id: str) -> None:
        async with self._changing:
            key = self._documents.get(kind, document_id).key
            await self._journal.write((Saved(note_of(key), None),), fsync=True)
            self._documents.forget(key)

    async def claim(self, kinds: Sequence[str]) -> Document | None:
        """Lends what waits for somebody to work on it. Raises as `Journal.write`."""
        return await _carried_through(self._claim(kinds))

    async def _claim(self, kinds: Sequence[str]) -> Document | None:
        async with self._changing:
            kept = self._documents.claim(kinds, self._clock(), self._wall_clock())
            if kept is None:
                await self._journal.settled()
                return None
            await self._keep(kept)
            self._documents.lend(kept.document, self._clock())
            return kept.document

    async def renew(self, kind: str, document_id: str, lease: int, *, give_back: bool) -> Document:
        """Raises NotFound, StaleEpoch, and what `Journal.settled` does."""
        await self._journal.settled()
        return self._documents.renew(kind, document_id, lease, self._clock(), give_back=give_back)

    async def _keep(self, kept: Kept) -> None:
        await self._journal.write((Saved(*kept.note),), fsync=True)
        self._documents.keep(kept)


async def _carried_through(change: Coroutine[Any, Any, T]) -> T:
    return await asyncio.shield(asyncio.create_task(change))


class DocumentRpcs:
    """The RPCs about documents, for the controller's service to inherit."""

    _documents: DocumentRuntime

    async def PutDocument(
        self, request: pb.PutDocumentRequest, context: Any
    ) -> pb.PutDocumentResponse:
        document = document_from(request.document)
        kept = await self._documents.put(document, holds_lease=request.holds_lease)
        return pb.PutDocumentResponse(document=document_to(kept))

    async def GetDocument(
        self, request: pb.GetDocumentRequest, context: Any
    ) -> pb.GetDocumentResponse:
        document = await self._documents.get(request.kind, request.document_id)
        return pb.GetDocumentResponse(document=document_to(document))

    async def ListDocuments(
        self, request: pb.ListDocumentsRequest, context: Any
    ) -> pb.ListDocumentsResponse:
        documents, more = await self._documents.page(
            request.kind,
            request.tenant,
            request.after_document_id,
            request.limit,
            oldest_first=request.oldest_first,
        )
        return pb.ListDocumentsResponse(documents=map(document_to, documents), has_more=more)

    async def DeleteDocument(
        self, request: pb.DeleteDocumentRequest, context: Any
    ) -> pb.DeleteDocumentResponse:
        await self._documents.delete(request.kind, request.document_id)
        return pb.DeleteDocumentResponse()

    async def ClaimDocument(
        self, request: pb.ClaimDocumentRequest, context: Any
    ) -> pb.ClaimDocumentResponse:
        document = await self._documents.claim(request.kinds)
        answer = pb.ClaimDocumentResponse(lease_s=self._documents.lease_s)
        if document is not None:
            answer.document.CopyFrom(document_to(document))
        return answer

    async def RenewDocument(
        self, request: pb.RenewDocumentRequest, context: Any
    ) -> pb.RenewDocumentResponse:
        document = await self._documents.renew(
            request.kind, request.document_id, request.lease, give_back=request.give_back
        )
        return pb.RenewDocumentResponse(document=document_to(document))
