"""Connections to the journal's database."""

from __future__ import annotations

import psycopg

from services.controller.journal.place import PostgresPlace
from services.controller.journal.postgres.schema import Connection

_USUAL = {
    "connect_timeout": "5",
    "application_name": "shunt-journal",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
"""libpq's parameters where the URI names no others: a database that is gone is noticed."""
_DURABLE = (
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') = 'off'"
)


def connect(place: PostgresPlace) -> Connection:
    """A connection whose commits are on disk when they are answered, whatever the database does by
    default; raises psycopg.Error."""
    parameters = {**_USUAL, **place.parameters, "client_encoding": "utf8"}
    connection = psycopg.connect("", autocommit=True, **parameters)  # type: ignore[arg-type]
    try:
        connection.execute(_DURABLE)
    except BaseException:
        connection.close()
        raise
    return connection
