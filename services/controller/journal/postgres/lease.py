"""Who may write: a row of the database, and the epoch that each writer's session has of its own.

No clock is trusted for safety. The epoch alone decides, in the database, whether a transaction is
taken; clocks decide only when a standby tries to be the next.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.controller.journal.postgres.schema import Connection

ENTER = "SELECT shunt_journal_enter(%s, %s)"
_LOOK = """SELECT epoch, holder, address, renewed, pid IS NOT NULL,
    coalesce(state = 'active' AND wait_event_type IS DISTINCT FROM 'Client', false)
FROM shunt_journal LEFT JOIN pg_stat_activity a
    ON a.pid = backend_pid AND a.backend_start = shunt_journal.backend_start"""
_END_SESSION = """SELECT pg_terminate_backend(a.pid)
FROM shunt_journal j JOIN pg_stat_activity a
    ON a.pid = j.backend_pid AND a.backend_start = j.backend_start
WHERE a.usename = current_user AND a.pid <> pg_backend_pid() AND {whose}"""
_TAKE = """UPDATE shunt_journal
SET epoch = epoch + 1, holder = %(me)s, address = %(address)s, renewed = renewed + 1,
    backend_pid = pg_backend_pid(),
    backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())
WHERE {whose}
RETURNING epoch, last_number"""
_SEEN, _MINE = "epoch = %(epoch)s AND renewed = %(renewed)s", "holder = %(me)s"
_RELEASE = "UPDATE shunt_journal SET holder = '', address = '' WHERE epoch = %s"


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease as it was seen."""

    epoch: int
    holder: str
    """Empty when nobody has it."""
    address: str
    """Where the holder serves, host:port."""
    renewed: int
    connected: bool
    """The holder's session lives, as far as the database knows."""
    busy: bool
    """The database works for it: who is slow is not gone."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a session may do that has taken the lease."""

    epoch: int
    last_number: int
    """The highest number that a row of records ever had."""


def look(connection: Connection) -> Lease:
    row = connection.execute(_LOOK).fetchone()
    assert row is not None, "prepare() made the row"
    return Lease(*row)


def take(connection: Connection, me: str, address: str, seen: Lease) -> Taken | None:
    """Takes the lease, in the caller's transaction; None where it is not as it was seen."""
    parameters = {
        "me": me,
        "address": address,
        "epoch": seen.epoch,
        "renewed": seen.renewed,
    }
    return _take(connection, _SEEN, parameters)


def take_again(connection: Connection, me: str, address: str) -> Taken | None:
    """The same for a new session of who has it: what the old one may have left on its way is
    refused from now on. None where somebody else has it."""
    return _take(connection, _MINE, {"me": me, "address": address})


def release(connection: Connection, epoch: int) -> None:
    """Leaves it to whoever comes."""
    connection.execute(_RELEASE, (epoch,))


def _take(connection: Connection, whose: str, parameters: dict[str, object]) -> Taken | None:
    # A holder that was stopped in the middle of a transaction would keep the row locked.
    connection.execute(_END_SESSION.format(whose=whose), parameters)
    row = connection.execute(_TAKE.format(whose=whose), parameters).fetchone()
    return None if row is None else Taken(*row)


class Patience:
    """How long a standby waits for a holder that says nothing: `lease_s`, or half as long for one
    whose session is gone."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._seen: tuple[int, int] | None = None
        self._since_s = 0.0

    def over(self, lease: Lease, now_s: float) -> bool:
        """Whether to try to be the next, by what was seen just now."""
        seen = lease.epoch, lease.renewed
        if not lease.holder:
            return True
        if seen != self._seen or lease.busy:
            self._seen, self._since_s = seen, now_s
        patience_s = self._lease_s if lease.connected else self._lease_s / 2
        return now_s - self._since_s >= patience_s

    def forget(self) -> None:
        """The database was away: a holder could not say anything."""
        self._seen = None
