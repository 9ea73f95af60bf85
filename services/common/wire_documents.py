"""Documents as messages and back."""

from __future__ import annotations

import math

from shuntserve.controller.v1 import controller_pb2

from services.common.documents import Document, check_document
from services.common.errors import InvalidArgument


def document_to(document: Document) -> controller_pb2.Document:
    return controller_pb2.Document(
        kind=document.kind,
        document_id=document.document_id,
        tenant=document.tenant,
        body=document.body,
        version=document.version,
        due_unix_s=document.due_unix_s,
        lease=document.lease,
    )


def document_from(message: controller_pb2.Document) -> Document:
    """Raises InvalidArgument and names the field."""
    due_unix_s = message.due_unix_s if message.HasField("due_unix_s") else None
    if due_unix_s is not None and not math.isfinite(due_unix_s):
        raise InvalidArgument("due_unix_s is no time", field="due_unix_s")
    document = Document(
        message.kind,
        message.document_id,
        message.tenant,
        message.body,
        message.version,
        due_unix_s,
        message.lease,
    )
    check_document(document)
    return document
