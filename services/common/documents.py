"""Documents that routers keep at the controller: what a value of theirs has to outlive them by."""

from __future__ import annotations

import re
from dataclasses import dataclass

from services.common.errors import InvalidArgument

MAX_BODY_CHARS = 256 << 10
MAX_TENANT_CHARS = 256
MAX_PAGE = 1000
_KIND = re.compile(r"[a-z][a-z_]{0,31}")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Document:
    """One document. Whoever puts it names the version that it follows, so of two that changed it at
    once only one has."""

    kind: str
    document_id: str
    tenant: str
    body: str
    version: int = 0
    """0 before it is kept."""
    due_unix_s: float | None = None
    """From then on there is work to do on it."""
    lease: int = 0
    """Counts who worked on it."""

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.document_id


def check_document_key(kind: str, document_id: str) -> None:
    """Raises InvalidArgument and names the field."""
    if not _KIND.fullmatch(kind):
        raise InvalidArgument("kind has 1 to 32 small letters and underscores", field="kind")
    if not _ID.fullmatch(document_id):
        raise InvalidArgument(
            "document_id has 1 to 64 letters, digits, - and _", field="document_id"
        )


def check_document(document: Document) -> None:
    """Raises InvalidArgument and names the field and its limit."""
    check_document_key(document.kind, document.document_id)
    if len(document.tenant) > MAX_TENANT_CHARS:
        raise InvalidArgument(
            f"tenant has {len(document.tenant)} characters, at most {MAX_TENANT_CHARS}",
            field="tenant",
        )
    if len(document.body) > MAX_BODY_CHARS:
        raise InvalidArgument(
            f"body has {len(document.body)} characters, at most {MAX_BODY_CHARS}", field="body"
        )
