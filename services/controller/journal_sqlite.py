"""The journal in an embedded SQLite file: one row a record, in the order they were written."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2

from services.common import wire
from services.common.errors import DataLoss, InvalidArgument
from services.common.generation import CancelReason, GenerationRequest, TokenSpan
from services.controller.journal import Item, LoggedEvent, Recovered, Saved
from services.controller.records import (
    Appended,
    Bound,
    Ended,
    Forgotten,
    Granted,
    Record,
    Sealed,
)
from services.controller.sqlite_writer import (
    SqliteWriter,
    Statement,
    domain_error,
    open_connection,
)

SCHEMA_VERSION = 1
_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE records(
    number INTEGER PRIMARY KEY,
    generation_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    epoch INTEGER, incarnation TEXT, formation_id TEXT, pipeline_id TEXT,
    choice INTEGER, reason TEXT, length INTEGER,
    body BLOB
);
CREATE INDEX records_by_generation ON records(generation_id);
CREATE TABLE events(
    number INTEGER PRIMARY KEY,
    time_unix_s REAL NOT NULL,
    kind TEXT NOT NULL, node_id TEXT NOT NULL, pipeline_id TEXT NOT NULL,
    generation_id TEXT NOT NULL, attributes TEXT NOT NULL
);
CREATE TABLE saved(key TEXT PRIMARY KEY, value TEXT NOT NULL);
PRAGMA user_version = 1;
COMMIT;
"""
_INSERT = (
    "INSERT INTO records(generation_id, kind, epoch, incarnation, formation_id, pipeline_id,"
    " choice, reason, length, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_SELECT = (
    "SELECT generation_id, kind, epoch, incarnation, formation_id, pipeline_id,"
    " choice, reason, length, body FROM records ORDER BY number"
)
_OF_EPOCH = (
    "generation_id = ?1 AND kind = 'Appended' AND number > (SELECT max(number) FROM records"
    " WHERE generation_id = ?1 AND kind IN ('Bound', 'Granted'))"
)
_JOIN = (
    "INSERT INTO records(generation_id, kind, body) SELECT ?1, 'Appended', join_bodies(body)"
    f" FROM records WHERE {_OF_EPOCH} GROUP BY generation_id HAVING count(*) > 1"
)
_DROP_JOINED = (
    f"DELETE FROM records WHERE {_OF_EPOCH} AND number <"
    " (SELECT max(number) FROM records WHERE generation_id = ?1 AND kind = 'Appended')"
)
_FORGET = "DELETE FROM records WHERE generation_id = ?"
_EVENTS = "SELECT * FROM events ORDER BY number"
_EVENT = "INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?, ?, ?)"
_DROP_EVENTS = "DELETE FROM events WHERE number <= ?"
_SAVE = "INSERT OR REPLACE INTO saved VALUES (?, ?)"
_UNSAVE = "DELETE FROM saved WHERE key = ?"


class SqliteJournal:
    """A Journal in one file; grants are fsynced, tokens committed in groups."""

    def __init__(
        self,
        path: Path,
        *,
        commit_interval_s: float = 0.01,
        pending_limit: int = 10_000,
        events_kept: int = 10_000,
        sync_always: bool = False,
    ) -> None:
        """Opens or creates the file; raises DataLoss when it is no journal of this version."""
        self._path = path
        self._events_kept = events_kept
        self._sync_always = sync_always
        try:
            connection = open_connection(path)
            aggregate: Any = _JoinBodies  # the stubs know sums of integers only
            connection.create_aggregate("join_bodies", 1, aggregate)
            _prepare(connection)
        except sqlite3.Error as error:
            raise domain_error(error) from error
        self._writer = SqliteWriter(
            connection, interval_s=commit_interval_s, pending_limit=pending_limit
        )
        self._last: asyncio.Future[None] | None = None

    @property
    def full(self) -> bool:
        return self._writer.full

    def write(self, items: Sequence[Item], *, fsync: bool = False) -> asyncio.Future[None]:
        statements = [statement for item in items for statement in self._statements(item)]
        self._last = self._writer.write(statements, sync=fsync or self._sync_always)
        return asyncio.shield(self._last)

    async def settled(self) -> None:
        if self._last is not None:
            await asyncio.shield(self._last)

    async def recover(self) -> Recovered:
        if self._last is not None:
            await asyncio.wait([self._last])
        try:
            recovered = await asyncio.to_thread(_read, self._path)
        except sqlite3.Error as error:
            raise domain_error(error) from error
        except (InvalidArgument, DecodeError, ValueError, IndexError) as error:
            raise DataLoss(f"the journal is damaged: {error}", field="journal") from error
        self._last = None
        self._writer.reset()
        return recovered

    async def close(self) -> None:
        self._writer.stop()
        await asyncio.to_thread(self._writer.join)

    def _statements(self, item: Item) -> Sequence[Statement]:
        if isinstance(item, Appended):  # by far the most
            return ((_INSERT, _row(item)),)
        if isinstance(item, LoggedEvent):
            attributes = json.dumps(dict(item.attributes))
            where = (item.node_id, item.pipeline_id, item.generation_id, attributes)
            return (
                (_EVENT, (item.number, item.time_unix_s, item.kind, *where)),
                (_DROP_EVENTS, (item.number - self._events_kept,)),
            )
        if isinstance(item, Saved):
            if item.value is None:
                return ((_UNSAVE, (item.key,)),)
            return ((_SAVE, (item.key, item.value)),)
        if isinstance(item, Forgotten):
            return ((_FORGET, (item.generation_id,)),)
        row = (_INSERT, _row(item))
        if isinstance(item, Bound) or (isinstance(item, Ended) and item.choice is not None):
            return (row,)
        name = (item.generation_id,)  # its epoch is over
        return ((_JOIN, name), (_DROP_JOINED, name), row)


def _prepare(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        connection.executescript(_SCHEMA)
    elif version != SCHEMA_VERSION:
        raise DataLoss(
            f"the journal has schema {version}, this program reads {SCHEMA_VERSION}",
            field="data_dir",
        )


def _read(path: Path) -> Recovered:
    with closing(open_connection(path)) as connection:
        connection.execute("BEGIN")
        return Recovered(
            records=tuple(
                record for row in connection.execute(_SELECT) for record in _records(row)
            ),
            events=tuple(
                LoggedEvent(number, time_s, kind, node, pipeline, generation, json.loads(more))
                for number, time_s, kind, node, pipeline, generation, more in connection.execute(
                    _EVENTS
                )
            ),
            saved=dict(connection.execute("SELECT key, value FROM saved")),
        )


def _body(request: GenerationRequest | None, spans: Sequence[TokenSpan]) -> bytes:
    return controller_pb2.Checkpoint(
        request=wire.request_to(request) if request is not None else None,
        runs=wire.spans_to(spans),
    ).SerializeToString()


def _row(record: Record) -> tuple[object, ...]:
    kind = type(record).__name__
    match record:
        case Bound(generation_id, incarnation, formation_id, pipeline_id, request):
            head = (1, incarnation, formation_id, pipeline_id)
            return (generation_id, kind, *head, None, None, None, _body(request, ()))
        case Granted(generation_id, epoch, incarnation, formation_id, pipeline_id, request, spans):
            head = (epoch, incarnation, formation_id, pipeline_id)
            return (generation_id, kind, *head, None, None, None, _body(request, spans))
        case Appended(generation_id, span):
            return (generation_id, kind, *(None,) * 7, _body(None, (span,)))
        case Sealed(generation_id, epoch):
            return (generation_id, kind, epoch, *(None,) * 7)
        case Ended(generation_id, choice, reason, length):
            end = (choice, reason.value, length)
            return (generation_id, kind, None, None, None, None, *end, None)
        case Forgotten():
            raise TypeError("a forgotten generation has no row")


def _records(
    row: tuple[str, str, int, str, str, str, int | None, str, int | None, bytes],
) -> Iterator[Record]:
    generation_id, kind, epoch, incarnation, formation_id, pipeline_id = row[:6]
    choice, reason, length, body = row[6:]
    if kind == "Sealed":
        yield Sealed(generation_id, epoch)
    elif kind == "Ended":
        yield Ended(generation_id, choice, CancelReason(reason), length)
    else:
        message = controller_pb2.Checkpoint.FromString(body)
        spans = wire.spans_from(message.runs)
        head = (incarnation, formation_id, pipeline_id)
        if kind == "Appended":
            for span in spans:
                yield Appended(generation_id, span)
        elif kind == "Bound":
            yield Bound(generation_id, *head, wire.request_from(message.request))
        elif kind == "Granted":
            yield Granted(generation_id, epoch, *head, wire.request_from(message.request), spans)
        else:
            raise InvalidArgument(f"unknown kind of record {kind}")


def _place(run: common_pb2.TokenRun) -> tuple[int, int, int]:
    return run.choice, run.start, run.finish_reason


class _JoinBodies:
    """Makes one body of an epoch's many, a run a choice: a long generation is read back fast."""

    def __init__(self) -> None:
        self._runs: list[common_pb2.TokenRun] = []

    def step(self, body: Any, /) -> None:
        self._runs += controller_pb2.Checkpoint.FromString(body).runs

    def finalize(self) -> bytes:
        joined: dict[int, common_pb2.TokenRun] = {}
        for run in sorted(self._runs, key=_place):
            whole = joined.setdefault(run.choice, run)
            if whole is not run:
                whole.ids.extend(run.ids)
                whole.logprobs.extend(run.logprobs)
                whole.finish_reason = whole.finish_reason or run.finish_reason
        return controller_pb2.Checkpoint(runs=joined.values()).SerializeToString()
