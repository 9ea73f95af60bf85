"""Schema 4 of the journal, for reading what earlier programs left: nothing was kept for long."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

VERSION = 4


def carry_over(connection: sqlite3.Connection, create_kept: Sequence[str]) -> None:
    """Adds what the present schema has more, in the caller's transaction."""
    for statement in create_kept:
        connection.execute(statement)
