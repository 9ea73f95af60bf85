"""Documents of the routers: versions, whose turn it is to work on one, and what is due.

What is asked is answered with the document as it is to be kept; `keep` and `forget` make it so, and
are called once it is durable. So nothing is known here that a restart would not know.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from services.common.documents import MAX_PAGE, Document, check_document, check_document_key
from services.common.errors import (
    Aborted,
    AlreadyExists,
    DataLoss,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    StaleEpoch,
)

NOTE = "document/"
"""Begins the keys of the notes that hold them."""
_VERSION = 1
_PAGE_CHARS = 4 << 20

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class DocumentSettings:
    """Limits, and how long one may work on a document without a word."""

    max_documents: int = 20_000
    max_chars: int = 64 << 20
    """Of all bodies together."""
    lease_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Kept:
    """A document and its place in the order in which they were first put."""

    document: Document
    number: int

    @property
    def note(self) -> tuple[str, str]:
        """Key and value of the note that holds it."""
        document = self.document
        fields = {
            "version": _VERSION,
            "number": self.number,
            "tenant": document.tenant,
            "body": document.body,
            "put": document.version,
            "due_unix_s": document.due_unix_s,
            "lease": document.lease,
        }
        return note_of(document.key), json.dumps(fields, sort_keys=True)


def note_of(key: Key) -> str:
    """Key of the note that holds a document."""
    return f"{NOTE}{key[0]}/{key[1]}"


class Documents:
    """All documents, by kind and name. Times are those of the caller's clock, but for what is due,
    which is told in seconds since 1970."""

    def __init__(self, settings: DocumentSettings) -> None:
        self._settings = settings
        self._kept: dict[Key, Kept] = {}
        self._of: dict[tuple[str, str], dict[str, Kept]] = {}
        """By kind and tenant, the oldest first."""
        self._chars: Counter[str] = Counter()
        """Of all bodies of a tenant."""
        self._number = 0
        self._waiting: list[tuple[float, int, Key]] = []
        """What falls due, the earliest first; entries of what has changed since are passed over."""
        self._due: dict[Key, float] = {}
        """What is due, or was: since when."""
        self._lent_until_s: dict[Key, float] = {}

    @classmethod
    def recover(
        cls, settings: DocumentSettings, saved: Mapping[str, str], now_s: float
    ) -> Documents:
        """As the notes among what was saved have them. Who works on one is given a whole loan.
        Raises DataLoss."""
        documents = cls(settings)
        notes = ((key, text) for key, text in saved.items() if key.startswith(NOTE))
        for kept in sorted((_kept_from(*note) for note in notes), key=lambda one: one.number):
            documents.keep(kept)
            if kept.document.lease:
                documents._lent_until_s[kept.document.key] = now_s + settings.lease_s
        return documents

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, kind: str, document_id: str) -> Document:
        """Raises InvalidArgument, NotFound."""
        check_document_key(kind, document_id)
        return self._found((kind, document_id)).document

    def page(
        self, kind: str, tenant: str, after: str, limit: int, *, oldest_first: bool
    ) -> tuple[list[Document], bool]:
        """Documents behind one of them, and whether there are more. Raises InvalidArgument, and
        NotFound for one to go on behind that is none of these."""
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidArgument(f"limit lies in [1, {MAX_PAGE}], not {limit}", field="limit")
        theirs = self._of.get((kind, tenant), {})
        if after and after not in theirs:
            raise NotFound(f"there is no {kind} {after[:64]}", field="after")
        found: list[Document] = []
        chars, behind = 0, not after
        for name, kept in theirs.items() if oldest_first else reversed(theirs.items()):
            if behind:
                chars += len(kept.document.body)
                if len(found) == limit or (found and chars > _PAGE_CHARS):
                    return found, True
                found.append(kept.document)
            behind = behind or name == after
        return found, False

    def put(self, document: Document, *, holds_lease: bool) -> Kept:
        """The document as it is to be kept. Raises InvalidArgument; AlreadyExists and NotFound
        where it is new and is not; Aborted when it follows another version than the newest,
        StaleEpoch when its holder is not the newest; ResourceExhausted."""
        check_document(document)
        held = self._kept.get(document.key)
        if held is None:
            if document.version or holds_lease:
                raise NotFound(f"there is no such {document.kind}", field="document_id")
            self._check_room(document.tenant, len(document.body), 1)
            return Kept(replace(document, version=1, lease=0), self._number + 1)
        before = held.document
        if not document.version:
            raise AlreadyExists(f"there is such a {document.kind} already", field="document_id")
        if holds_lease and document.lease != before.lease:
            raise StaleEpoch(f"another one works on this {document.kind}", field="lease")
        if document.version != before.version:
            raise Aborted(
                f"this {document.kind} has version {before.version}, not {document.version}",
                field="version",
            )
        if document.tenant != before.tenant:
            raise InvalidArgument("a document keeps its tenant", field="tenant")
        self._check_room(document.tenant, len(document.body) - len(before.body), 0)
        changed = replace(document, version=before.version + 1, lease=before.lease)
        return Kept(changed, held.number)

    def claim(self, kinds: Collection[str], now_s: float, now_unix_s: float) -> Kept | None:
        """What somebody may work on from now on: of the tenant that has least lent, what is due
        longest; None when nothing waits."""
        self._fall_due(now_unix_s)
        lent = Counter(
            self._kept[key].document.tenant for key in self._due if self._lent(key, now_s)
        )
        waiting = [key for key in self._due if key[0] in kinds and not self._lent(key, now_s)]
        if not waiting:
            return None
        key = min(waiting, key=lambda one: (lent[self._tenant(one)], self._due[one], one))
        kept = self._kept[key]
        return replace(kept, document=replace(kept.document, lease=kept.document.lease + 1))

    def renew(
        self, kind: str, document_id: str, lease: int, now_s: float, *, give_back: bool
    ) -> Document:
        """Whoever works on it does so for longer, or not any more. Raises NotFound, StaleEpoch."""
        check_document_key(kind, document_id)
        document = self._found((kind, document_id)).document
        if document.lease != lease:
            raise StaleEpoch(f"another one works on this {kind}", field="lease")
        if give_back:
            self._lent_until_s.pop(document.key, None)
        else:
            self.lend(document, now_s)
        return document

    def lend(self, document: Document, now_s: float) -> None:
        """Its holder may work on it for `lease_s` from now on."""
        self._lent_until_s[document.key] = now_s + self._settings.lease_s

    def keep(self, kept: Kept) -> None:
        """This is durable."""
        document, before = kept.document, self._kept.get(kept.document.key)
        self._chars[document.tenant] += len(document.body)
        self._chars[document.tenant] -= len(before.document.body) if before else 0
        self._number = max(self._number, kept.number)
        self._kept[document.key] = kept
        self._of.setdefault((document.kind, document.tenant), {})[document.document_id] = kept
        if before is None or before.document.due_unix_s != document.due_unix_s:
            self._due.pop(document.key, None)
            if document.due_unix_s is not None:
                heapq.heappush(self._waiting, (document.due_unix_s, kept.number, document.key))
        if document.due_unix_s is None:
            self._lent_until_s.pop(document.key, None)

    def forget(self, key: Key) -> None:
        """It is gone, durably."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            document = kept.document
            self._chars[document.tenant] -= len(document.body)
            del self._of[document.kind, document.tenant][document.document_id]
        self._due.pop(key, None)
        self._lent_until_s.pop(key, None)

    def _found(self, key: Key) -> Kept:
        try:
            return self._kept[key]
        except KeyError:
            raise NotFound(f"there is no such {key[0]}", field="document_id") from None

    def _tenant(self, key: Key) -> str:
        return self._kept[key].document.tenant

    def _lent(self, key: Key, now_s: float) -> bool:
        return self._lent_until_s.get(key, now_s) > now_s

    def _fall_due(self, now_unix_s: float) -> None:
        while self._waiting and self._waiting[0][0] <= now_unix_s:
            due_unix_s, number, key = heapq.heappop(self._waiting)
            kept = self._kept.get(key)
            if kept is not None and (kept.number, kept.document.due_unix_s) == (number, due_unix_s):
                self._due[key] = due_unix_s

    def _check_room(self, tenant: str, chars: int, documents: int) -> None:
        """Who has a name among others has half of the room at most."""
        settings, parts = self._settings, 2 if tenant else 1
        theirs = sum(len(found) for (_, name), found in self._of.items() if name == tenant)
        most = settings.max_documents // parts
        if documents and (len(self._kept) >= settings.max_documents or theirs >= most):
            raise ResourceExhausted(
                f"{theirs} documents of this tenant are kept already, of at most {most}, and "
                f"{len(self._kept)} in all",
                field="documents",
            )
        most, total = settings.max_chars // parts, self._chars.total()
        if chars > 0 and (total + chars > settings.max_chars or self._chars[tenant] + chars > most):
            raise ResourceExhausted(
                f"documents of this tenant have {self._chars[tenant]} characters, of at most "
                f"{most}, and {total} in all",
                field="documents",
            )


def _kept_from(key: str, text: str) -> Kept:
    kind, _, document_id = key.removeprefix(NOTE).partition("/")
    try:
        fields: dict[str, Any] = json.loads(text)
        document = Document(
            kind,
            document_id,
            fields["tenant"],
            fields["body"],
            fields["put"],
            fields["due_unix_s"],
            fields["lease"],
        )
        check_document(document)
        return Kept(document, fields["number"])
    except (TypeError, ValueError, KeyError, InvalidArgument) as error:
        raise DataLoss(f"the journaled note {key} cannot be read: {error}") from error
