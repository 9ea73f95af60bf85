"""Rows of the journal's file: a record's columns and back, each row with a checksum of its own."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from typing import Any

from services.common.errors import DataLoss
from services.common.exchange import GenerationView
from services.controller.core.ledger.records import IdsAppended, Kept, Record
from services.controller.journal.bodies import (
    KINDS,
    joined,
    kept_from,
    kept_to,
    records_from,
    stored,
)
from services.controller.journal.journal import LoggedEvent, Recovered

Row = tuple[Any, ...]
Read = tuple[float, tuple[Record, ...]]
"""When a row was written, and its records: one, or one a choice where appends were joined."""


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
    return with_checksum(number, written_s, record.generation_id, *stored(record))


def kept_row(written_s: float, kept: Kept) -> Row:
    """The stored row of a generation that is kept."""
    return with_checksum(kept.generation_id, written_s, kept_to(kept.view))


def read_kept(row: Row) -> GenerationView:
    """What such a row says; raises DataLoss where it is damaged."""
    return kept_from(bytes(checked("kept", row)[2]))


def read_row(row: Row) -> Read:
    """What a checked row of records says."""
    _, written_s, generation_id, kind, body = row
    return written_s, tuple(records_from(generation_id, kind, body))


def recovered_of(
    records: Iterable[Read], events: Iterable[Row], saved: Iterable[Row], now_s: float
) -> Recovered:
    """All that a journal says, as it was read; events and notes from checked rows."""
    said: list[Record] = []
    ages_s: list[float] = []
    for written_s, of_row in records:
        said += of_row
        ages_s += [max(0.0, now_s - written_s)] * len(of_row)
    return Recovered(tuple(said), tuple(map(_event_of, events)), dict(saved), tuple(ages_s))


def _event_of(row: Row) -> LoggedEvent:
    number, time_s, kind, node_id, pipeline_id, generation_id, attributes, plan = row
    about = (node_id, pipeline_id, generation_id, json.loads(attributes), plan)
    return LoggedEvent(number, time_s, kind, *about)


class JoinBodies:
    """Makes one body of an epoch's many: a long generation is read back fast."""

    def __init__(self) -> None:
        self._bodies: list[bytes] = []

    def step(self, number: int, written_s: float, name: str, body: bytes, found: int) -> None:
        """Takes one append; what is damaged gets no checksum that says otherwise."""
        checked("records", (number, written_s, name, KINDS[IdsAppended], body, found))
        self._bodies.append(body)

    def finalize(self) -> bytes:
        return joined(self._bodies)
