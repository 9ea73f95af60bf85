"""Rows of the journal's file: a record's columns and back, each row with a checksum of its own."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2

from services.common import wire
from services.common.errors import DataLoss, InvalidArgument
from services.common.generation import CancelReason, GenerationRequest, TokenSpan
from services.controller.core.ledger.records import (
    Ended,
    Forgotten,
    Granted,
    HeadBound,
    IdsAppended,
    Record,
    Sealed,
)

Row = tuple[Any, ...]
_UNNAMED = (None,) * 7
"""Epoch, incarnation, formation, pipeline, choice, reason, length: what an append lacks."""


def checksum(*columns: object) -> int:
    """CRC-32 of a row's columns, the body last; any few flipped bits change it."""
    *named, body = columns
    head = zlib.crc32(repr(named).encode())
    return (
        zlib.crc32(body, head) if isinstance(body, bytes) else zlib.crc32(repr(body).encode(), head)
    )


def checked(table: str, row: Row) -> Row:
    """The row without its checksum, which stands last; raises DataLoss when it does not match."""
    *columns, found = row
    if checksum(*columns) != found:
        raise DataLoss(f"row {columns[0]} of table {table} does not match its checksum")
    return tuple(columns)


def with_checksum(*columns: object) -> Row:
    """A row as it is stored."""
    return (*columns, checksum(*columns))


def row_of(number: int, written_s: float, record: Record) -> Row:
    """The stored row of a record, written at a wall-clock time."""
    return with_checksum(number, written_s, record.generation_id, *_columns(record))


def _columns(record: Record) -> tuple[object, ...]:
    kind = type(record).__name__
    match record:
        case HeadBound(_, incarnation, formation_id, pipeline_id, request):
            head = (1, incarnation, formation_id, pipeline_id)
            return (kind, *head, None, None, None, _body(request, ()))
        case Granted(_, epoch, incarnation, formation_id, pipeline_id, request, spans):
            head = (epoch, incarnation, formation_id, pipeline_id)
            return (kind, *head, None, None, None, _body(request, spans))
        case IdsAppended(_, span):
            return (kind, *_UNNAMED, _body(None, (span,)))
        case Sealed(_, epoch):
            return (kind, epoch, *(None,) * 7)
        case Ended(_, choice, reason, length):
            return (kind, None, None, None, None, choice, reason.value, length, None)
        case Forgotten():
            raise TypeError("a forgotten generation has no row")


def _body(request: GenerationRequest | None, spans: Sequence[TokenSpan]) -> bytes:
    return controller_pb2.Checkpoint(
        request=wire.request_to(request) if request is not None else None,
        runs=wire.spans_to(spans),
    ).SerializeToString()


def records_of(row: Row) -> Iterator[Record]:
    """What a checked row says: a record, or one a choice where appends were joined."""
    _, _, generation_id, kind, epoch, incarnation, formation_id, pipeline_id = row[:8]
    choice, reason, length, body = row[8:]
    if kind == "Sealed":
        yield Sealed(generation_id, epoch)
    elif kind == "Ended":
        yield Ended(generation_id, choice, CancelReason(reason), length)
    else:
        message = controller_pb2.Checkpoint.FromString(body)
        spans = wire.spans_from(message.runs)
        head = (incarnation, formation_id, pipeline_id)
        if kind == "IdsAppended":
            for span in spans:
                yield IdsAppended(generation_id, span)
        elif kind == "HeadBound":
            yield HeadBound(generation_id, *head, wire.request_from(message.request))
        elif kind == "Granted":
            yield Granted(generation_id, epoch, *head, wire.request_from(message.request), spans)
        else:
            raise InvalidArgument(f"unknown kind of record {kind}")


def _place(run: common_pb2.TokenSpan) -> tuple[int, int, int]:
    return run.choice, run.start, run.finish_reason


class JoinBodies:
    """Makes one body of an epoch's many, a run a choice: a long generation is read back fast."""

    def __init__(self) -> None:
        self._runs: list[common_pb2.TokenSpan] = []

    def step(self, number: int, written_s: float, name: str, body: bytes, found: int) -> None:
        """Takes one append; what is damaged gets no checksum that says otherwise."""
        checked("records", (number, written_s, name, IdsAppended.__name__, *_UNNAMED, body, found))
        self._runs += controller_pb2.Checkpoint.FromString(body).runs

    def finalize(self) -> bytes:
        joined: dict[int, common_pb2.TokenSpan] = {}
        for run in sorted(self._runs, key=_place):
            whole = joined.setdefault(run.choice, run)
            if whole is not run:
                whole.ids.extend(run.ids)
                whole.logprobs.extend(run.logprobs)
                whole.finish_reason = whole.finish_reason or run.finish_reason
        return controller_pb2.Checkpoint(runs=joined.values()).SerializeToString()
