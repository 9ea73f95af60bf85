"""What only a shared journal has: leaders that follow one another, and a server that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest

from services.common.errors import (
    DataLoss,
    FailedPrecondition,
    ResourceExhausted,
    ShuntError,
    Superseded,
    Unavailable,
)
from services.common.generation import TokenSpan
from services.controller.core.ledger.records import Forgotten, IdsAppended, Record
from services.controller.journal.journal import JournalRoom
from services.controller.journal.postgres.journal import PostgresJournal
from tests.postgres import Cluster
from tests.unit.controller.journal.samples import RECORDS
from tests.unit.controller.journal.stores import PostgresStore
from tests.waiting import until

WAIT_S = 60.0
Make = Callable[..., PostgresJournal]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def store(cluster: Cluster) -> PostgresStore:
    return PostgresStore(cluster.new_journal())


@pytest.fixture
def make(store: PostgresStore, stack: AsyncExitStack) -> Make:
    """Opens the same journal again and again."""

    def made(name: str = "h:1", **more: Any) -> PostgresJournal:
        more = {"commit_interval_s": 0.0, "lease_s": 0.6, **more}
        journal = PostgresJournal(store.place, address=lambda: name, **more)
        stack.push_async_callback(journal.close)
        return journal

    return made


def _part(number: int) -> IdsAppended:
    return IdsAppended("g", TokenSpan(0, number, (number,)))


async def _silence(journal: PostgresJournal) -> None:
    """As if its process was stopped: it neither renews nor writes by itself."""
    assert journal._renewing is not None
    journal._renewing.cancel()


async def test_nothing_is_written_before_it_leads(make: Make) -> None:
    with pytest.raises(Unavailable, match="does not lead"):
        make().write(RECORDS)


async def test_a_standby_follows_for_as_long_as_the_leader_renews(make: Make) -> None:
    leader = make("h:1")
    await leader.lead()
    told: list[str] = []
    standing = asyncio.create_task(make("h:2").lead(told.append))
    await until(lambda: told)
    renewed = _number(make, "renewed")
    await until(lambda: _number(make, "renewed") > renewed + 8)
    assert (told, standing.done()) == (["h:1"], False)
    standing.cancel()
    await asyncio.gather(standing, return_exceptions=True)


def _number(make: Make, column: str) -> int:
    place = make()._place
    with psycopg.connect("", **place.parameters) as connection:  # type: ignore[arg-type]
        statement: Any = f"SELECT {column} FROM shunt_journal"
        row = connection.execute(statement).fetchone()
    assert row is not None
    return int(row[0])


async def test_a_leader_that_leaves_is_followed_by_one_that_knows_all(make: Make) -> None:
    leader = make()
    await leader.lead()
    await leader.write(RECORDS[:3], fsync=True)
    standing = asyncio.create_task(make().lead())
    await leader.write(RECORDS[3:], fsync=True)
    await leader.close()
    async with asyncio.timeout(WAIT_S):
        assert (await standing).records == RECORDS


async def test_who_was_followed_can_neither_write_nor_answer(make: Make) -> None:
    old, new = make("h:1"), make("h:2")
    await old.lead()
    await old.write((_part(0),), fsync=True)
    await _silence(old)
    async with asyncio.timeout(WAIT_S):
        assert (await new.lead()).records == (_part(0),)
    await new.write((_part(1),), fsync=True)
    for late in (
        old.write((_part(9),), fsync=True),
        old.settled(),
        old.confirmed(),
        old.recover(),
    ):
        with pytest.raises(ShuntError):
            await late
    async with asyncio.timeout(WAIT_S):
        assert isinstance(await old.superseded(), Superseded)
    assert (await new.recover()).records == (_part(0), _part(1))


async def test_a_transaction_left_open_does_not_hold_up_who_comes_next(make: Make) -> None:
    old, new = make(), make()
    await old.lead()
    await _silence(old)
    assert old._writer is not None
    session = old._writer._session
    stopped_in_the_middle = session._connection
    stopped_in_the_middle.execute("BEGIN")
    stopped_in_the_middle.execute("SELECT shunt_journal_enter(%s, 0)", (session._epoch,))
    stopped_in_the_middle.execute("INSERT INTO shunt_saved VALUES ('a', 'b', 0)")
    async with asyncio.timeout(WAIT_S):
        assert (await new.lead()).saved == {}


async def test_what_an_old_session_left_on_its_way_is_refused_once_it_was_read_again(
    make: Make,
) -> None:
    journal = make()
    await journal.lead()
    assert journal._writer is not None
    epoch = journal._writer._session._epoch
    await journal.recover()
    with (
        psycopg.connect("", **journal._place.parameters) as late,  # type: ignore[arg-type]
        pytest.raises(psycopg.Error) as refused,
    ):
        late.execute("SELECT shunt_journal_enter(%s, 0)", (epoch,))
    assert refused.value.sqlstate == "SH001"
    await journal.write((_part(0),), fsync=True)


async def test_an_epoch_that_rises_under_a_living_session_ends_it(
    make: Make, store: PostgresStore
) -> None:
    journal = make()
    await journal.lead()
    await journal.write((_part(0),), fsync=True)
    with psycopg.connect(store.uri, autocommit=True) as connection:
        connection.execute("UPDATE shunt_journal SET epoch = epoch + 1, holder = 'another'")
    with pytest.raises(Superseded):
        await journal.write((_part(1),), fsync=True)
    async with asyncio.timeout(WAIT_S):
        await journal.superseded()
    with psycopg.connect(store.uri) as connection:
        assert connection.execute("SELECT count(*) FROM shunt_records").fetchone() == (1,)


async def test_of_two_that_begin_at_once_one_leads(make: Make) -> None:
    journals = [make(f"h:{n}") for n in range(3)]
    tasks = [asyncio.create_task(journal.lead()) for journal in journals]
    async with asyncio.timeout(WAIT_S):
        done, standing = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        (leader,) = (j for j, t in zip(journals, tasks, strict=True) if t in done)
        await leader.write((_part(0),), fsync=True)
        await leader.close()
        await asyncio.wait(standing, return_when=asyncio.FIRST_COMPLETED)
    assert sum(task.done() for task in tasks) == 2
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_standby_drops_what_the_leader_forgets(make: Make) -> None:
    leader, other = make(), make()
    await leader.lead()
    standing = asyncio.create_task(other.lead())
    for number in range(5):
        await leader.write((_part(number),), fsync=True)
    await leader.write((Forgotten("g"),), fsync=True)
    await leader.write((RECORDS[0],), fsync=True)
    await leader.close()
    async with asyncio.timeout(WAIT_S):
        assert (await standing).records == (RECORDS[0],)


async def test_a_killed_server_loses_nothing_that_was_answered(
    own_cluster: Cluster, stack: AsyncExitStack
) -> None:
    place = PostgresStore(own_cluster.new_journal()).place
    journal = PostgresJournal(place, commit_interval_s=0.001, lease_s=5.0)
    await journal.lead()
    stack.push_async_callback(journal.close)
    written: list[Record] = []
    for kills in range(3):
        for _ in range(20):
            await journal.write((_part(len(written)),))
            written.append(_part(len(written)))
        killing = asyncio.create_task(asyncio.to_thread(own_cluster.kill))
        with pytest.raises(ShuntError):
            await _write_on(journal, written)
        await killing
        with pytest.raises(ShuntError):
            await journal.write((_part(10_000),))
        with pytest.raises(Unavailable):
            await journal.recover()
        await asyncio.to_thread(own_cluster.start)
        found = list((await journal.recover()).records)
        assert found[: len(written)] == written, kills
        assert len(found) <= len(written) + 1
        written = found


async def _write_on(journal: PostgresJournal, written: list[Record]) -> None:
    while True:
        await journal.write((_part(len(written)),))
        written.append(_part(len(written)))


def _fill(journal: PostgresJournal, waiting: list[asyncio.Future[None]]) -> None:
    while True:
        waiting.append(journal.write((_part(len(waiting)),)))


async def test_a_server_that_hangs_is_told_and_nothing_is_lost(
    own_cluster: Cluster, stack: AsyncExitStack
) -> None:
    place = PostgresStore(own_cluster.new_journal()).place
    journal = PostgresJournal(place, commit_interval_s=0.0, lease_s=0.6, pending_limit=50)
    await journal.lead()
    stack.push_async_callback(journal.close)
    assert journal.room is JournalRoom.ENOUGH
    own_cluster.pause(True)
    try:
        waiting = [journal.write((_part(n),)) for n in range(10)]
        await until(lambda: journal.room is JournalRoom.AWAY)
        with pytest.raises(ResourceExhausted, match="too many writes"):
            _fill(journal, waiting)
        assert not any(write.done() for write in waiting)
    finally:
        own_cluster.pause(False)
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*waiting)
        assert (await journal.recover()).records == tuple(_part(n) for n in range(len(waiting)))
    assert journal.room is JournalRoom.ENOUGH


async def test_a_wrong_password_is_told_and_neither_is_repeated(cluster: Cluster) -> None:
    place = PostgresStore(cluster.uri(password="wrong-horse")).place
    with pytest.raises(ShuntError) as refused:
        await PostgresJournal(place).lead()
    assert "password authentication failed" in refused.value.message
    assert f"postgresql://shunt@127.0.0.1:{cluster.port}/postgres" in refused.value.message
    assert "wrong-horse" not in refused.value.message
    assert refused.value.field == "journal"


async def test_a_schema_that_is_not_there_is_told(cluster: Cluster) -> None:
    with pytest.raises(FailedPrecondition, match="the schema that its search_path names"):
        await PostgresJournal(PostgresStore(cluster.uri("nowhere")).place).lead()


async def test_tables_of_another_version_are_refused(make: Make, store: PostgresStore) -> None:
    journal = make()
    await journal.lead()
    await journal.close()
    with psycopg.connect(store.uri, autocommit=True) as connection:
        connection.execute("UPDATE shunt_journal SET version = 99")
    with pytest.raises(DataLoss, match="has schema 99, this program reads 5"):
        await make().lead()


async def test_tables_of_schema_4_get_what_is_kept(make: Make, store: PostgresStore) -> None:
    journal = make()
    await journal.lead()
    await journal.write((_part(0),))
    await journal.close()
    with psycopg.connect(store.uri, autocommit=True) as connection:
        connection.execute("DROP TABLE shunt_kept")
        connection.execute("UPDATE shunt_journal SET version = 4")
    for _ in range(2):
        journal = make()
        assert (await journal.lead()).records == (_part(0),)
        assert await journal.kept("g") is None
        await journal.close()


async def test_a_role_that_may_not_make_tables_is_told(cluster: Cluster) -> None:
    with cluster.admin() as connection:
        connection.execute("CREATE ROLE poor LOGIN PASSWORD 'right-horse'")
    uri = cluster.uri("pg_catalog").replace("shunt:", "poor:")
    with pytest.raises(FailedPrecondition, match="permission denied"):
        await PostgresJournal(PostgresStore(uri).place).lead()
