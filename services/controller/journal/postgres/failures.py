"""What a failure of PostgreSQL means to who asked."""

from __future__ import annotations

import psycopg

from services.common.errors import (
    DataLoss,
    FailedPrecondition,
    ResourceExhausted,
    ShuntError,
    Superseded,
    Unavailable,
)

EPOCH_OVER = "SH001"
"""SQLSTATE that this journal's gate raises."""
_NO_ROOM = ("53100", "53200", "54000")
"""Disk full, out of memory, over a limit of the program."""
_DAMAGED = ("XX001", "XX002")
_NOT_ALLOWED = ("25006", "3D000", "3F000", "42501", "42P01", "42883", "42703")
"""Read-only, no such database, no such schema, no right, and tables that are not this journal's."""
_REFUSED = "28"
"""Class of codes: who connects is not let in."""


def lacks_room(error: psycopg.Error) -> bool:
    """The database did not take what was written."""
    return error.sqlstate in _NO_ROOM


def domain_error(error: psycopg.Error, name: str) -> ShuntError:
    """`name` is the database's, as it may be told. Nothing of the transaction was stored, but where
    the answer to a commit was lost."""
    code, said = error.sqlstate or "", first_line(error)
    if code == EPOCH_OVER:
        return Superseded("another controller leads", field="journal")
    if lacks_room(error):
        return ResourceExhausted(f"{name} cannot be written: {said}", field="journal")
    if code in _DAMAGED:
        return damaged(name, said)
    if code in _NOT_ALLOWED or code.startswith(_REFUSED):
        return FailedPrecondition(f"{name} cannot be used: {said}", field="journal")
    return Unavailable(f"{name} did not answer: {said}", field="journal")


def damaged(name: str, what: str) -> DataLoss:
    """Says where and what can be done about it."""
    return DataLoss(
        f"{name} is damaged: {what}. Restore it from a backup; to start without it: drop the tables"
        " shunt_* (open generations and events are lost, models not)",
        field="journal",
    )


def first_line(error: psycopg.Error) -> str:
    """Of what was said; there is no password in it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
