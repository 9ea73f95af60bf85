"""Schema 3 of the journal's file, for reading what earlier programs left: events named no plan."""

from __future__ import annotations

import sqlite3

from services.controller.journal.rows import checked, with_checksum

VERSION = 3
_INSERT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_NO_PLAN = 0


def carry_over(connection: sqlite3.Connection, create_events: str) -> int:
    """Replaces the events by rows of the present schema, in the caller's transaction; returns how
    many. The other tables are the same. The newest events alone are kept, so they are few.

    Raises DataLoss for a row that is damaged.
    """
    rows = connection.execute("SELECT * FROM events ORDER BY number").fetchall()
    connection.execute("DROP TABLE events")
    connection.execute(create_events)
    connection.executemany(
        _INSERT, (with_checksum(*checked("events", row), _NO_PLAN) for row in rows)
    )
    return len(rows)
