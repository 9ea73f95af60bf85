"""A batch: its states, what is done of it, and the document that outlives whoever works on it.

Status moves validating → failed or in_progress → finalizing → completed; in_progress → expired;
validating or in_progress → cancelling → cancelled (OpenAI's Batch API); to failed also where files
are lost. What is done is a set of lines
and the pieces that hold their results; both change in one put of the document, so a line counts as
done exactly when its result is in a piece that counts.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from services.common.documents import Document
from services.common.errors import DataLoss, FailedPrecondition

KIND = "batch"
"""Of the documents that hold batches."""
MAX_LINES = 50_000
WINDOW_S = 24 * 3600
MAX_FAULTS = 20
"""Of an input file's faults so many are told."""


class Status(StrEnum):
    """Where a batch stands."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


_ASKED = ("endpoint", "input_file_id", "metadata", "output_expires_s")
ENDS = frozenset((Status.FAILED, Status.COMPLETED, Status.EXPIRED, Status.CANCELLED))
_STAMPS: Mapping[Status, str] = MappingProxyType(
    {
        Status.IN_PROGRESS: "in_progress_at",
        Status.FINALIZING: "finalizing_at",
        Status.COMPLETED: "completed_at",
        Status.FAILED: "failed_at",
        Status.EXPIRED: "expired_at",
        Status.CANCELLING: "cancelling_at",
        Status.CANCELLED: "cancelled_at",
    }
)
_NEXT: Mapping[Status, frozenset[Status]] = MappingProxyType(
    {
        Status.VALIDATING: frozenset(
            (Status.FAILED, Status.IN_PROGRESS, Status.CANCELLING, Status.EXPIRED)
        ),
        Status.IN_PROGRESS: frozenset(
            (Status.FINALIZING, Status.CANCELLING, Status.EXPIRED, Status.FAILED)
        ),
        Status.FINALIZING: frozenset((Status.COMPLETED, Status.FAILED)),
        Status.CANCELLING: frozenset((Status.CANCELLED, Status.FAILED)),
    }
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an input file."""

    code: str
    message: str
    line: int | None = None
    """Counted from 1."""
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Results of some lines, as they lie in the place; `failed` ones go to the error file."""

    name: str
    failed: bool
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the answers."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )


class Lines:
    """A set of line numbers, from 0."""

    def __init__(self, total: int, bits: bytes = b"") -> None:
        self.total = total
        self._bits = bytearray(bits.ljust(-(-total // 8), b"\0"))

    def __contains__(self, line: int) -> bool:
        return bool(self._bits[line >> 3] >> (line & 7) & 1)

    def __len__(self) -> int:
        return int.from_bytes(self._bits, "little").bit_count()

    def with_these(self, lines: Iterable[int]) -> Lines:
        """These too."""
        wider = Lines(self.total, bytes(self._bits))
        for line in lines:
            wider._bits[line >> 3] |= 1 << (line & 7)
        return wider

    def packed(self) -> str:
        """As text; short where neighbours are equal."""
        return base64.b64encode(zlib.compress(bytes(self._bits))).decode()

    @classmethod
    def unpacked(cls, total: int, text: str) -> Lines:
        """Raises ValueError for what `packed` never made."""
        try:
            bits = zlib.decompress(base64.b64decode(text, validate=True))
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if len(bits) != -(-total // 8):
            raise ValueError("a set of lines is of another size")
        return cls(total, bits)


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch. Every change gives another value; times are seconds since 1970."""

    batch_id: str
    tenant: str
    endpoint: str
    input_file_id: str
    created_unix_s: int
    expires_unix_s: int
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    output_expires_s: int | None = None
    """The files that it writes expire so long after it was made."""
    models: tuple[str, ...] | None = None
    """Those that its tenant may use; None: any."""
    status: Status = Status.VALIDATING
    model: str = ""
    total: int = 0
    completed: int = 0
    failed: int = 0
    done: Lines = field(default_factory=lambda: Lines(0))
    pieces: tuple[Piece, ...] = ()
    usage: Usage = Usage()
    faults: tuple[Fault, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    expiring: bool = False
    """Its time is over: lines without a result get none any more."""
    stamps: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """When it came to its states, by their names in the API."""
    kept_until_unix_s: int | None = None
    """Of one that has ended."""
    version: int = 0
    lease: int = 0

    @property
    def ended(self) -> bool:
        return self.status in ENDS

    @property
    def began_unix_s(self) -> int:
        """When its first line could be answered."""
        return self.stamps.get("in_progress_at", self.created_unix_s)

    def validated(self, model: str, total: int, now_unix_s: float) -> Batch:
        """Its file can be used."""
        begun = self._to(Status.IN_PROGRESS, now_unix_s)
        return replace(begun, model=model, total=total, done=Lines(total))

    def refused(self, faults: Iterable[Fault], now_unix_s: float) -> Batch:
        """Its file cannot be used."""
        told = tuple(faults)[:MAX_FAULTS]
        return replace(self._to(Status.FAILED, now_unix_s), faults=told)

    def noted(
        self, done: Iterable[int], failed: int, usage: Usage, pieces: Iterable[Piece]
    ) -> Batch:
        """Lines whose results lie in new pieces; so many of them failed. Lines that were done
        already must not come again: FailedPrecondition."""
        lines = list(done)
        if len(set(lines)) != len(lines) or any(line in self.done for line in lines):
            raise FailedPrecondition("a line has a result already", field="line")
        return replace(
            self,
            done=self.done.with_these(lines),
            completed=self.completed + len(lines) - failed,
            failed=self.failed + failed,
            usage=self.usage + usage,
            pieces=(*self.pieces, *pieces),
        )

    def same_ask(self, other: Batch) -> bool:
        """Both were asked for by the same words."""
        return all(getattr(self, name) == getattr(other, name) for name in _ASKED)

    def holds(self, pieces: Iterable[Piece]) -> bool:
        """These pieces count."""
        return not set(pieces) - set(self.pieces)

    def overdue(self) -> Batch:
        """Its time is over."""
        return replace(self, expiring=True)

    @property
    def last(self) -> Status:
        """The state that it is about to end in, once every line has its result."""
        if self.status is Status.CANCELLING:
            return Status.CANCELLED
        return Status.EXPIRED if self.expiring else Status.COMPLETED

    def finalizing(self, now_unix_s: float) -> Batch:
        """Every line has its result; nothing changes where that was said before."""
        if self.status is Status.FINALIZING:
            return self
        return self._to(Status.FINALIZING, now_unix_s)

    def cancelling(self, now_unix_s: float) -> Batch:
        """Its client does not want the rest; nothing changes for one that is being cancelled.
        Raises FailedPrecondition for one whose results are put together, or that has ended."""
        if self.status in (Status.CANCELLING, Status.CANCELLED):
            return self
        return self._to(Status.CANCELLING, now_unix_s)

    def end(
        self,
        status: Status,
        output_file_id: str | None,
        error_file_id: str | None,
        now_unix_s: float,
        keep_s: float,
    ) -> Batch:
        """It has ended; its results lie in these files."""
        return replace(
            self._to(status, now_unix_s),
            output_file_id=output_file_id,
            error_file_id=error_file_id,
            pieces=(),
            done=Lines(0),
            kept_until_unix_s=int(now_unix_s + keep_s),
        )

    def _to(self, status: Status, now_unix_s: float) -> Batch:
        if status not in _NEXT.get(self.status, ()):
            raise FailedPrecondition(
                f"batch {self.batch_id} is {self.status} and cannot become {status}", field="id"
            )
        stamps = {**self.stamps, _STAMPS[status]: int(now_unix_s)}
        return replace(self, status=status, stamps=MappingProxyType(stamps))

    def document(self) -> Document:
        """As it is kept. There is work to do on it until it has ended, and once it is to be
        forgotten."""
        due = self.kept_until_unix_s if self.ended else self.created_unix_s
        return Document(
            KIND, self.batch_id, self.tenant, self._json(), self.version, due, self.lease
        )

    def _json(self) -> str:
        fields = asdict(replace(self, metadata={}, stamps={}, done=Lines(0)))
        for name in ("batch_id", "tenant", "version", "lease"):
            del fields[name]
        fields["done"] = self.done.packed()
        fields["pieces"] = [(one.name, one.failed, one.size_bytes) for one in self.pieces]
        fields["metadata"], fields["stamps"] = dict(self.metadata), dict(self.stamps)
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    def shown(self) -> dict[str, Any]:
        """As clients see it."""
        faults = [asdict(fault) for fault in self.faults]
        usage = self.usage
        return {
            "id": self.batch_id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model or None,
            "errors": {"object": "list", "data": faults} if faults else None,
            "input_file_id": self.input_file_id,
            "completion_window": f"{WINDOW_S // 3600}h",
            "status": self.status.value,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_unix_s,
            "expires_at": self.expires_unix_s,
            **{name: self.stamps.get(name) for name in _STAMPS.values()},
            "request_counts": {
                "total": self.total,
                "completed": self.completed,
                "failed": self.failed,
            },
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
            "metadata": dict(self.metadata) or None,
        }


def batch_of(document: Document) -> Batch:
    """Raises DataLoss for what `Batch.document` never made."""
    try:
        fields: dict[str, Any] = json.loads(document.body)
        total = fields["total"]
        fields["done"] = Lines.unpacked(0 if fields["status"] in ENDS else total, fields["done"])
        fields["pieces"] = tuple(Piece(*piece) for piece in fields["pieces"])
        fields["faults"] = tuple(Fault(**fault) for fault in fields["faults"])
        fields["usage"] = Usage(**fields["usage"])
        fields["status"] = Status(fields["status"])
        models = fields["models"]
        fields["models"] = None if models is None else tuple(models)
        for name in ("metadata", "stamps"):
            fields[name] = MappingProxyType(fields[name])
        return Batch(
            batch_id=document.document_id,
            tenant=document.tenant,
            version=document.version,
            lease=document.lease,
            **fields,
        )
    except (TypeError, ValueError, KeyError) as error:
        raise DataLoss(f"a batch cannot be read: {error}") from error
