"""Documents that this router keeps at the controller."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc

from services.common import telemetry
from services.common.documents import MAX_PAGE, Document
from services.common.wire_documents import document_from, document_to
from services.router.controllers import Controllers

T = TypeVar("T")


class DocumentClient:
    """Calls of whichever controller leads; each raises the domain errors of its answer."""

    def __init__(self, controllers: Controllers, timeout_s: float) -> None:
        self._controllers = controllers
        self._timeout_s = timeout_s

    async def get(self, kind: str, document_id: str) -> Document:
        """Raises NotFound."""
        request = pb.GetDocumentRequest(kind=kind, document_id=document_id)
        answer = await self._call(
            lambda stub, left_s: stub.GetDocument(
                request, timeout=left_s, metadata=telemetry.metadata()
            )
        )
        return document_from(answer.document)

    async def put(self, document: Document, *, holds_lease: bool = False) -> Document:
        """The version that follows. Raises AlreadyExists and NotFound where it is new and is not,
        Aborted for one that changed meanwhile, StaleEpoch when the lease is another's by now."""
        request = pb.PutDocumentRequest(document=document_to(document), holds_lease=holds_lease)
        answer = await self._call(
            lambda stub, left_s: stub.PutDocument(
                request, timeout=left_s, metadata=telemetry.metadata()
            )
        )
        return document_from(answer.document)

    async def page(
        self, kind: str, tenant: str, after: str, limit: int, *, oldest_first: bool = False
    ) -> tuple[list[Document], bool]:
        """Some behind a document, and whether there are others. Raises NotFound."""
        request = pb.ListDocumentsRequest(
            kind=kind,
            tenant=tenant,
            after_document_id=after,
            limit=min(limit, MAX_PAGE),
            oldest_first=oldest_first,
        )
        answer = await self._call(
            lambda stub, left_s: stub.ListDocuments(
                request, timeout=left_s, metadata=telemetry.metadata()
            )
        )
        return list(map(document_from, answer.documents)), answer.has_more

    async def pages(
        self, kind: str, tenant: str, after: str, *, oldest_first: bool = False
    ) -> AsyncIterator[Document]:
        """All behind a document. Raises NotFound."""
        more = True
        while more:
            found, more = await self.page(kind, tenant, after, MAX_PAGE, oldest_first=oldest_first)
            for document in found:
                after = document.document_id
                yield document

    async def delete(self, kind: str, document_id: str) -> None:
        """Raises NotFound."""
        request = pb.DeleteDocumentRequest(kind=kind, document_id=document_id)
        await self._call(
            lambda stub, left_s: stub.DeleteDocument(
                request, timeout=left_s, metadata=telemetry.metadata()
            )
        )

    async def claim(self, kinds: Sequence[str]) -> tuple[Document | None, float]:
        """What this router works on from now on, if anything waits, and for how many seconds."""
        request = pb.ClaimDocumentRequest(kinds=kinds)
        answer = await self._call(lambda stub, left_s: stub.ClaimDocument(request, timeout=left_s))
        found = document_from(answer.document) if answer.HasField("document") else None
        return found, answer.lease_s

    async def renew(self, document: Document, *, give_back: bool = False) -> Document:
        """For as long again, or not any more; the document as it is now. Raises NotFound, and
        StaleEpoch when somebody else works on it by now."""
        request = pb.RenewDocumentRequest(
            kind=document.kind,
            document_id=document.document_id,
            lease=document.lease,
            give_back=give_back,
        )
        answer = await self._call(lambda stub, left_s: stub.RenewDocument(request, timeout=left_s))
        return document_from(answer.document)

    async def _call(
        self,
        make: Callable[[controller_pb2_grpc.ControllerServiceAsyncStub, float], Awaitable[T]],
    ) -> T:
        return await self._controllers.call(make, self._timeout_s)
