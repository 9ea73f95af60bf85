"""Rows of the journal's file: a record's columns and back, each row with a checksum of its own."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from services.common.errors import DataLoss
from services.controller.core.ledger.records import IdsAppended, Record
from services.controller.journal.bodies import KINDS, joined, records_from, stored

Row = tuple[Any, ...]


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


def records_of(row: Row) -> Iterator[Record]:
    """What a checked row says."""
    _, _, generation_id, kind, body = row
    return records_from(generation_id, kind, body)


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
