"""Appends of epochs that are over become one row a generation, in the transaction that says so."""

from __future__ import annotations

from collections.abc import Sequence

from services.controller.core.ledger.records import Granted, HeadBound, IdsAppended
from services.controller.journal.bodies import KINDS, joined
from services.controller.journal.groups import Statement
from services.controller.journal.postgres.schema import Connection
from services.controller.journal.rows import Row, checked, with_checksum

JOIN = "join"
"""Stands for what no single statement does: the appends of a generation's epoch, which ended at a
number, become the row of that number."""
INSERT = "INSERT INTO shunt_records VALUES (%s, %s, %s, %s, %s, %s)"
INSERT_MANY = (
    "INSERT INTO shunt_records SELECT * FROM unnest(%s::bigint[], %s::double precision[],"
    " %s::text[], %s::integer[], %s::bytea[], %s::bigint[])"
)
"""The same for many rows, as columns."""
_APPENDED = KINDS[IdsAppended]
_BEGIN_EPOCH = (KINDS[HeadBound], KINDS[Granted])
_OF_GENERATIONS = (
    "SELECT number, written_s, generation_id, kind,"
    f" CASE WHEN kind = {_APPENDED} THEN body ELSE ''::bytea END, checksum"
    f" FROM shunt_records WHERE generation_id = ANY(%s) AND kind = ANY(%s) ORDER BY number"
)
_DROP = "DELETE FROM shunt_records WHERE number = ANY(%s)"


def ends(statements: Sequence[Statement]) -> list[tuple[str, int]]:
    """Generations whose epoch is over, each with the number kept for its joined row."""
    return [(str(about[0]), int(str(about[1]))) for sql, about in statements if sql == JOIN]


def join(connection: Connection, over: Sequence[tuple[str, int]]) -> None:
    """Joins them, in the caller's transaction, behind all that it writes; raises DataLoss for a row
    that is damaged."""
    names = sorted({name for name, _ in over})
    found = connection.execute(
        _OF_GENERATIONS, (names, [_APPENDED, *_BEGIN_EPOCH]), binary=True
    ).fetchall()
    of_generation: dict[str, list[Row]] = {}
    for row in found:
        of_generation.setdefault(row[2], []).append(row)
    dropped: list[int] = []
    with connection.pipeline():
        for name, number in over:
            parts = _of_epoch(of_generation.get(name, ()), number)
            if len(parts) < 2:
                continue
            bodies = [bytes(checked("records", row)[4]) for row in parts]
            written_s = max(row[1] for row in parts)
            whole = with_checksum(number, written_s, name, _APPENDED, joined(bodies))
            connection.execute(INSERT, whole)
            dropped += [row[0] for row in parts]
        if dropped:
            connection.execute(_DROP, (dropped,))


def _of_epoch(rows: Sequence[Row], end: int) -> list[Row]:
    """Appends before a number, behind what began the epoch that they belong to."""
    parts: list[Row] = []
    for row in rows:
        if row[0] > end:
            break
        if row[3] in _BEGIN_EPOCH:
            parts = []
        else:
            parts.append(row)
    return parts
