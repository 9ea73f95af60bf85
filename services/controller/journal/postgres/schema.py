"""The journal's tables in PostgreSQL: made in a schema that has none, refused where they are
another version's."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import TupleRow

from services.common.errors import DataLoss, FailedPrecondition
from services.controller.journal import schema4
from services.controller.journal.postgres.failures import EPOCH_OVER
from services.controller.journal.schema import VERSION

Connection = psycopg.Connection[TupleRow]
_MAKING = "SELECT pg_advisory_xact_lock(hashtext('shunt_journal'))"
"""Two controllers that start at once make the tables one after the other."""
_HERE = "SELECT current_schema()"
_THERE = (
    "SELECT 1 FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'shunt_journal'"
)
_KEPT = (
    """CREATE TABLE shunt_kept(
    generation_id text PRIMARY KEY, written_s double precision NOT NULL,
    body bytea NOT NULL, checksum bigint NOT NULL
)""",
    "CREATE INDEX shunt_kept_by_time ON shunt_kept(written_s)",
)
"""What schema 5 added."""
_TABLES = (
    """CREATE TABLE shunt_records(
    number bigint PRIMARY KEY, written_s double precision NOT NULL,
    generation_id text NOT NULL,
    kind integer NOT NULL, body bytea NOT NULL, checksum bigint NOT NULL
)""",
    "CREATE INDEX shunt_records_by_generation ON shunt_records(generation_id, number)",
    """CREATE TABLE shunt_events(
    number bigint PRIMARY KEY,
    time_unix_s double precision NOT NULL,
    kind text NOT NULL, node_id text NOT NULL, pipeline_id text NOT NULL,
    generation_id text NOT NULL, attributes text NOT NULL, plan bigint NOT NULL,
    checksum bigint NOT NULL
)""",
    *_KEPT,
    "CREATE TABLE shunt_saved(key text PRIMARY KEY, value text NOT NULL, checksum bigint NOT NULL)",
    # One row. `epoch` rises with each session that may write; `renewed` with each of its commits.
    """CREATE TABLE shunt_journal(
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version integer NOT NULL,
    epoch bigint NOT NULL DEFAULT 0,
    holder text NOT NULL DEFAULT '',
    address text NOT NULL DEFAULT '',
    renewed bigint NOT NULL DEFAULT 0,
    last_number bigint NOT NULL DEFAULT 0,
    backend_pid integer,
    backend_start timestamptz
) WITH (fillfactor = 10)""",
    # The gate that every transaction of a writer goes through first. It locks the row: a successor
    # waits for what is being committed, and whoever comes behind the successor is refused.
    f"""CREATE FUNCTION shunt_journal_enter(mine bigint, reaches bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE shunt_journal
        SET renewed = renewed + 1, last_number = greatest(last_number, reaches)
        WHERE epoch = mine;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'epoch % of the journal is over', mine USING ERRCODE = '{EPOCH_OVER}';
    END IF;
END
$$""",
)


def prepare(connection: Connection, name: str) -> None:
    """Makes the tables where there are none. Raises DataLoss for those of another version, and
    psycopg.Error."""
    with connection.transaction():
        connection.execute(_MAKING)
        if _one(connection, _HERE) is None:
            raise FailedPrecondition(
                f"{name} cannot be used: the schema that its search_path names is not there",
                field="journal",
            )
        if _one(connection, _THERE) is None:
            for statement in _TABLES:
                connection.execute(statement)
            connection.execute("INSERT INTO shunt_journal(version) VALUES (%s)", (VERSION,))
        found = _one(connection, "SELECT version FROM shunt_journal")
        if found == schema4.VERSION:
            for statement in _KEPT:
                connection.execute(statement)
            connection.execute("UPDATE shunt_journal SET version = %s", (VERSION,))
            found = VERSION
        if found != VERSION:
            raise DataLoss(
                f"{name} has schema {found}, this program reads {VERSION}: start the program that"
                " wrote it, or drop the tables shunt_*",
                field="journal",
            )


def _one(connection: Connection, statement: str) -> Any:
    row = connection.execute(statement).fetchone()
    return None if row is None else row[0]
