"""The schema of the journal's file: made in a new one, brought about in an older one."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from services.common.errors import DataLoss
from services.controller.journal import schema2, schema3, schema4
from services.controller.journal.rows import JoinBodies, checksum
from services.controller.journal.writer import damaged

_log = logging.getLogger(__name__)
VERSION = 5
"""Of tables, codes and bodies together; the bodies are those of schema 3, shuntserve.journal.v3."""
RECORDS = (
    """CREATE TABLE records(
    number INTEGER PRIMARY KEY, written_s REAL NOT NULL,
    generation_id TEXT NOT NULL,
    kind INTEGER NOT NULL, body BLOB NOT NULL, checksum INTEGER NOT NULL
)""",
    "CREATE INDEX records_by_generation ON records(generation_id)",
)
EVENTS = """CREATE TABLE events(
    number INTEGER PRIMARY KEY,
    time_unix_s REAL NOT NULL,
    kind TEXT NOT NULL, node_id TEXT NOT NULL, pipeline_id TEXT NOT NULL,
    generation_id TEXT NOT NULL, attributes TEXT NOT NULL, plan INTEGER NOT NULL,
    checksum INTEGER NOT NULL
)"""
KEPT = (
    """CREATE TABLE kept(
    generation_id TEXT PRIMARY KEY, written_s REAL NOT NULL,
    body BLOB NOT NULL, checksum INTEGER NOT NULL
)""",
    "CREATE INDEX kept_by_time ON kept(written_s)",
)
"""What schema 5 added."""
_SAVED = "CREATE TABLE saved(key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL)"
INSERT = "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)"
MALFORMED = (DecodeError, ValueError, TypeError, IndexError)
"""What reading a row raises, beside DataLoss, whose content is not what its program wrote."""


def readable(connection: sqlite3.Connection, path: Path) -> None:
    """Raises DataLoss for a file of a schema that this program does not know."""
    found = _version(connection)
    if found not in (0, schema2.VERSION, schema3.VERSION, schema4.VERSION, VERSION):
        raise DataLoss(
            f"{path} has schema {found}, this program reads {schema2.VERSION} to {VERSION}: start"
            f" the program that wrote it, or move {path.name}* away",
            field="data_dir",
        )


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Makes the file one of this schema, in one transaction: killed, it has the old one whole.

    A file of schema 2 needs its own size once more, for the log. Raises DataLoss, which names the
    file, when it is damaged, and sqlite3.Error.
    """
    found = _version(connection)
    if found != VERSION:
        connection.execute("BEGIN IMMEDIATE")
        if found:
            _carry_over(connection, path, found)
        else:
            for statement in (*RECORDS, EVENTS, _SAVED, *KEPT):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    if found == schema2.VERSION:  # a log as large as the file would be all that is left of the disk
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    aggregate: Any = JoinBodies  # the stubs know sums of integers only
    connection.create_aggregate("join_bodies", 5, aggregate)
    connection.create_function("row_checksum", -1, checksum, deterministic=True)


def any_text(stored: bytes) -> str:
    """A text factory: what is not UTF-8 is for the checksums to find."""
    return stored.decode("utf-8", "surrogateescape")


def check_trees(connection: sqlite3.Connection) -> None:
    """Raises DataLoss when one is damaged; rows are checked as they are read."""
    found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise DataLoss(found)


def _carry_over(connection: sqlite3.Connection, path: Path, found: int) -> None:
    try:
        check_trees(connection)
        connection.text_factory = any_text
        count = 0
        if found == schema2.VERSION:
            count += schema2.carry_over(connection, RECORDS, INSERT)
        if found <= schema3.VERSION:
            count += schema3.carry_over(connection, EVENTS)
        schema4.carry_over(connection, KEPT)
    except DataLoss as error:
        raise damaged(path, error.message) from error
    except MALFORMED as error:
        raise damaged(path, str(error)) from error
    connection.text_factory = str
    _log.info(
        "the journal was carried over to a newer schema",
        extra={"path": str(path), "rows": count, "schema": VERSION},
    )


def _version(connection: sqlite3.Connection) -> int:
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return found
