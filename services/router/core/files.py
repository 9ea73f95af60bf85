"""A file as OpenAI's API has it: what is known of it beside its bytes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from services.common.documents import Document
from services.common.errors import DataLoss, InvalidArgument

LEAST_KEPT_S, MOST_KEPT_S = 3600, 30 * 24 * 3600
KIND = "file"
"""Of the documents that hold files."""
_FIELDS = ("filename", "purpose", "size_bytes", "created_unix_s", "expires_unix_s")


class Purpose(StrEnum):
    """What a file is for."""

    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file; its bytes lie in the place under `name`."""

    file_id: str
    tenant: str
    filename: str
    purpose: Purpose
    size_bytes: int
    created_unix_s: int
    expires_unix_s: int | None = None

    @property
    def name(self) -> str:
        """Of its bytes in the place."""
        return name_of(self.file_id)

    def document(self) -> Document:
        """As it is kept; due when it expires."""
        fields = asdict(self)
        body = json.dumps({name: fields[name] for name in _FIELDS}, sort_keys=True)
        return Document(KIND, self.file_id, self.tenant, body, due_unix_s=self.expires_unix_s)

    def shown(self) -> dict[str, Any]:
        """As clients see it."""
        expires = {} if self.expires_unix_s is None else {"expires_at": self.expires_unix_s}
        return {
            "id": self.file_id,
            "object": "file",
            "bytes": self.size_bytes,
            "created_at": self.created_unix_s,
            "filename": self.filename,
            "purpose": self.purpose.value,
            "status": "processed",
            **expires,
        }


def name_of(file_id: str) -> str:
    """Of a file's bytes in the place."""
    return f"files/{file_id}"


def file_of(document: Document) -> StoredFile:
    """Raises DataLoss for what `StoredFile.document` never made."""
    try:
        fields = json.loads(document.body)
        fields["purpose"] = Purpose(fields["purpose"])
        return StoredFile(document.document_id, document.tenant, **fields)
    except (TypeError, ValueError, KeyError) as error:
        raise DataLoss(f"the entry of a file cannot be read: {error}") from error


def kept_s(anchor: object, seconds: object, where: str) -> int:
    """How long behind its creation a file expires. Raises InvalidArgument."""
    if anchor != "created_at":
        raise InvalidArgument(f"{where}.anchor must be created_at", field=f"{where}.anchor")
    if not isinstance(seconds, int) or not LEAST_KEPT_S <= seconds <= MOST_KEPT_S:
        raise InvalidArgument(
            f"{where}.seconds must lie in [{LEAST_KEPT_S}, {MOST_KEPT_S}]",
            field=f"{where}.seconds",
        )
    return seconds
