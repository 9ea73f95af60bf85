"""Kills leaders of a shared journal, and its database, under streams, and says what came of it.

`shunt up --standbys 1` over a PostgreSQL of its own, two pipelines of a node each. Again and again
the leader is killed, alone or with an engine, or stopped and let go on once it was followed, or the
database is killed and started again. Meanwhile streams are read, whose texts must be those of
undisturbed ones, and grants are asked for, whose epochs must never go back; behind each fault the
journal must go on where it was.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg

from bench import mesh as meshes
from bench import written
from bench.bounds import rate_bound_95
from services.cli.mesh_directory import MeshDirectory, ServiceRecord
from services.common import channels
from services.common.errors import ShuntError
from services.common.exchange import ResumeQuestion
from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.common.roles import Role
from services.controller.core.ledger.records import Granted, HeadBound, IdsAppended, Record
from services.controller.journal.place import PostgresPlace, place_of
from services.controller.journal.postgres.connecting import connect
from services.controller.journal.postgres.reading import Follower
from services.router.controller import ControllerClient
from tests.postgres import Cluster

FAULTS = ("leader killed", "leader and engine killed", "leader stopped", "database killed")
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Rig:
    """A mesh with two controllers."""

    mesh: meshes.Mesh
    cluster: Cluster
    place: PostgresPlace
    client: ControllerClient
    model: ModelRef

    @property
    def controllers(self) -> list[ServiceRecord]:
        services = MeshDirectory(self.mesh.data_dir).running().services
        return [service for service in services if service.is_controller]

    async def leader(self) -> ServiceRecord:
        """Whoever leads now, once somebody does."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with suppress(psycopg.Error):
                    address = await asyncio.to_thread(self._holder)
                    for one in self.controllers:
                        if one.grpc == address and one.pid:
                            return one
                await asyncio.sleep(0.05)

    def _holder(self) -> str:
        with connect(self.place) as connection:
            row = connection.execute("SELECT address FROM shunt_journal").fetchone()
        return "" if row is None else str(row[0])

    async def an_engine(self) -> int:
        """Of one that serves; the leader names it."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                nodes = (await self.mesh.status())["nodes"]
                for node in nodes:
                    if node["state"] == "ready" and node["pid"]:
                        return int(node["pid"])
                await asyncio.sleep(0.1)


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Rig]:
    """Up inside the block."""
    of_server = Path(tempfile.mkdtemp(prefix="shunt-postgres-"))
    cluster = await asyncio.to_thread(Cluster, of_server)
    await asyncio.to_thread(cluster.start)
    try:
        uri = cluster.new_journal()
        place = place_of(uri, directory)
        assert isinstance(place, PostgresPlace)
        options = ("--journal", uri, "--standbys", "1", "--node-speeds", "1,1")
        async with meshes.running(directory, options=options) as mesh:
            model = (await mesh.status())["model"]
            services = MeshDirectory(directory).running().services
            opened = [
                channels.open_channel(s.grpc or "", Role.CONTROLLER)
                for s in services
                if s.is_controller
            ]
            client = ControllerClient(opened, timeout_s=5.0, watch_s=3600.0)
            watching = asyncio.create_task(client.watch_routes("bench", lambda *news: None))
            try:
                yield Rig(mesh, cluster, place, client, ModelRef(model["id"], model["digest"]))
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                await asyncio.gather(*(channel.close() for channel in opened))
    finally:
        await asyncio.to_thread(cluster.stop)
        shutil.rmtree(of_server)


class Streams:
    """Readers of the same few requests, over and over; each text is compared."""

    def __init__(self, rig: Rig, http: httpx.AsyncClient, tokens: int, count: int) -> None:
        self._url = rig.mesh.url()
        self._http = http
        bodies = meshes.request_bodies(tokens)[:count]
        self._bodies = [body | {"ignore_eos": True} for body in bodies]
        self._expected: list[meshes.StreamRecord] = []
        self._records: list[list[meshes.StreamRecord]] = [[] for _ in bodies]
        """Of each reader, the one that is read now last."""
        self.read = self.failed = self.differ = 0

    async def learn(self) -> float:
        """Reads each with nothing in its way; seconds of the longest gap."""
        self._expected = await meshes.undisturbed(self._http, self._url, self._bodies)
        return max(record.longest_gap_s() for record in self._expected)

    async def read_on(self, index: int, stop: asyncio.Event) -> None:
        """Reads one request again and again."""
        while not stop.is_set():
            record = meshes.StreamRecord()
            self._records[index].append(record)
            await meshes.stream_chat(self._http, self._url, self._bodies[index], record)
            wanted = self._expected[index]
            self.read += 1
            if not record.complete:
                self.failed += 1
                print(f"a stream failed: {record.error}", file=sys.stderr)
            elif (record.text, record.usage) != (wanted.text, wanted.usage):
                self.differ += 1

    async def go_on(self) -> None:
        """Waits until each has brought something that is newer than this."""
        now_s = time.monotonic()
        await meshes.until(
            lambda: all(self._newest_s(records) > now_s for records in self._records), PATIENCE_S
        )

    def _newest_s(self, records: list[meshes.StreamRecord]) -> float:
        return max((record.arrivals_s[-1] for record in records if record.arrivals_s), default=0.0)

    def longest_gap_since_s(self, began_s: float) -> float:
        """Between two events of one stream, of which one came since."""
        every = itertools.chain.from_iterable(self._records)
        return max((record.longest_gap_s(began_s) for record in every), default=0.0)


class Grants:
    """Asks for grants, and whether those that were given still stand."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._numbers = itertools.count()
        self.given: dict[str, int] = {}
        self.gone_back = 0

    async def one(self) -> float:
        """Seconds until another generation is granted."""
        began_s = time.monotonic()
        name = f"probe-{next(self._numbers)}"
        request = GenerationRequest(name, self._rig.model, (1, 2, 3), Sampling(max_tokens=4))
        question = ResumeQuestion(name, 0, request, ())
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    grant = await self._rig.client.resume(question, 10.0)
                except ShuntError:
                    await asyncio.sleep(0.05)
                else:
                    self.given[name] = grant.epoch
                    return time.monotonic() - began_s

    def check(self, records: tuple[Record, ...]) -> None:
        """Counts grants that the journal does not have any more."""
        held = dict[str, int]()
        for record in records:
            if isinstance(record, Granted):
                held[record.generation_id] = max(record.epoch, held.get(record.generation_id, 0))
        self.gone_back += sum(held.get(name, 0) < epoch for name, epoch in self.given.items())


class Prefixes:
    """What the journal held at each look: it may only have grown since."""

    def __init__(self, place: PostgresPlace) -> None:
        self._place = place
        self._ids: dict[tuple[str, int], tuple[int, ...]] = {}
        self.looks = self.broken = 0

    def look(self) -> tuple[Record, ...]:
        with connect(self._place) as connection:
            follower = Follower(self._place.name)
            with connection.transaction():
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                records = follower.whole(connection, time.time()).records
        found = dict[tuple[str, int], tuple[int, ...]]()
        for record in records:
            spans = record.spans if isinstance(record, Granted) else ()
            if isinstance(record, HeadBound):
                found.setdefault((record.generation_id, 0), ())
            if isinstance(record, IdsAppended):
                spans = (record.span,)
            for span in spans:
                key = record.generation_id, span.choice
                had = found.get(key, ())
                self.broken += span.start != len(had)
                found[key] = had + span.ids
        for key, had in self._ids.items():
            if key in found:
                self.broken += found[key][: len(had)] != had
        self._ids = found
        self.looks += 1
        return records


async def inflict(rig: Rig, fault: str) -> int:
    """Returns when the fault is there; the pid of who is stopped and has to go on, 0 for nobody."""
    leader = await rig.leader()
    if fault == "database killed":
        await asyncio.to_thread(rig.cluster.kill)
        await asyncio.to_thread(rig.cluster.start)
        return 0
    if fault == "leader stopped":
        os.kill(leader.pid, signal.SIGSTOP)
        return leader.pid
    engine = await rig.an_engine() if fault == "leader and engine killed" else 0
    for pid in (leader.pid, engine):
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return 0


async def run(directory: Path, faults: int, streams: int, tokens: int) -> dict[str, Any]:
    waits_s: dict[str, list[float]] = {fault: [] for fault in FAULTS}
    gaps_s: dict[str, list[float]] = {fault: [] for fault in FAULTS}
    async with running(directory) as rig, httpx.AsyncClient(timeout=300.0) as http:
        grants, prefixes = Grants(rig), Prefixes(rig.place)
        await grants.one()
        readers = Streams(rig, http, tokens, streams)
        undisturbed_gap_s = await readers.learn()
        stop = asyncio.Event()
        reading = [asyncio.create_task(readers.read_on(n, stop)) for n in range(streams)]
        for number in range(faults):
            fault = FAULTS[number % len(FAULTS)]
            await rig.mesh.until_ready(2)
            await readers.go_on()
            began_s = time.monotonic()
            stopped = await inflict(rig, fault)
            waits_s[fault].append(await grants.one())
            if stopped:
                os.kill(stopped, signal.SIGCONT)
            await readers.go_on()
            gaps_s[fault].append(readers.longest_gap_since_s(began_s))
            grants.check(await asyncio.to_thread(prefixes.look))
            said = f"granted in {waits_s[fault][-1]:.2f} s, longest gap {gaps_s[fault][-1]:.2f} s"
            print(f"{number + 1}/{faults} {fault}: {said}", flush=True)
        stop.set()
        await asyncio.gather(*reading)
        grants.check(await asyncio.to_thread(prefixes.look))
    bad = readers.failed + readers.differ
    return {
        "faults": {fault: len(waits) for fault, waits in waits_s.items()},
        "granted_in_s": _spread(waits_s),
        "gap_s": _spread(gaps_s),
        "undisturbed_gap_s": undisturbed_gap_s,
        "streams": readers.read,
        "failed": readers.failed,
        "differ": readers.differ,
        "rate_bound_95": rate_bound_95(bad, readers.read),
        "grants": len(grants.given),
        "grants_gone_back": grants.gone_back,
        "journal_looks": prefixes.looks,
        "journal_not_a_prefix": prefixes.broken,
    }


def _spread(by_fault: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        fault: {"median": statistics.median(found), "longest": max(found)}
        for fault, found in by_fault.items()
        if found
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=24)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logging.getLogger("services").setLevel(logging.ERROR)  # whoever has no leader says so
    with tempfile.TemporaryDirectory(prefix="shunt-failover-") as directory:
        work = run(Path(directory), arguments.faults, arguments.streams, arguments.tokens)
        report = asyncio.run(work)
    written.show(report, arguments.out)
    lost = report["grants_gone_back"] + report["journal_not_a_prefix"]
    return 1 if report["failed"] + report["differ"] + lost else 0


if __name__ == "__main__":
    sys.exit(main())
