"""Requests of all kinds that never stop coming, and kills of engines that are under them.

A kill strikes an answer that has begun, has not ended, and is at the pipeline of the engine that is
killed. That it was struck in mid-answer is known by what comes of it: it goes on in a later epoch.
One whose last ids were on their way already ends where it was, and a kill that has only such
strikes nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from shuntserve.controller.v1 import controller_pb2

from bench import mesh as meshes
from bench.kinds_answers import Answer, ask
from bench.kinds_asked import Kind
from bench.moves import Event

BEGUN = 4
"""Events of an answer before its engines are worth a kill."""
LOOK_S = 0.05
SETTLED_S = 60.0
"""Within this time what was struck is granted another epoch, or it has ended."""
AGAIN_S = 0.5
"""Behind an error: who is refused at once would keep a core busy with asking."""
FOLLOWED_S = 86_400.0
"""Longer than any run."""


@dataclass(frozen=True, slots=True)
class Struck:
    """An answer at the pipeline of an engine that was killed."""

    kind: str
    answer: Answer
    generation_id: str
    epoch: int
    """In which it ran."""


class Grants:
    """The newest epoch that was granted of each generation, as the controller's log has it."""

    def __init__(self) -> None:
        self._epochs: dict[str, int] = {}

    async def follow(self, controller: Any) -> None:
        """Runs until it is cancelled; `controller` is a stub of its service."""
        asked = controller_pb2.WatchEventsRequest()
        events = controller.WatchEvents(asked, timeout=FOLLOWED_S)
        try:
            async for event in events:
                self.take(event)
        finally:
            events.cancel()

    def take(self, event: Event) -> None:
        """The next event of the log."""
        if event.kind == "generation_granted":
            self._epochs[event.generation_id] = int(event.attributes["epoch"])

    def moved(self, struck: Struck) -> bool:
        """It went on elsewhere."""
        return self._epochs.get(struck.generation_id, 0) > struck.epoch


class Load:
    """Each of some readers asks for one answer after another: every second one for a kind that was
    asked for least, the others for one that was struck least."""

    def __init__(
        self, client: httpx.AsyncClient, mesh: meshes.Mesh, model: str, kinds: Mapping[str, Kind]
    ) -> None:
        self._client, self._mesh, self._model, self._kinds = client, mesh, model, kinds
        self._asked: Counter[str] = Counter()
        self._live: dict[int, tuple[str, Answer]] = {}
        """By reader."""
        self.struck: Counter[str] = Counter()
        """By kind."""
        self.answers: list[tuple[str, Answer]] = []
        """All that were asked for, with their kinds."""
        self.stopping = False

    async def read(self, reader: int) -> None:
        """Until it is told to stop, and what it reads has ended."""
        while not self.stopping:
            name, answer = self.begin(reader)
            url = self._mesh.url(reader % self._mesh.routers)
            await ask(self._client, url, self._model, self._kinds[name], answer)
            del self._live[reader]
            if answer.error:
                await asyncio.sleep(AGAIN_S)

    def begin(self, reader: int) -> tuple[str, Answer]:
        """What is asked next, and where the answer will be."""
        name, answer = self._next(reader), Answer()
        self._asked[name] += 1
        self._live[reader] = name, answer
        self.answers.append((name, answer))
        return name, answer

    def _next(self, reader: int) -> str:
        running = Counter(name for name, _ in self._live.values())
        if reader % 2:
            return min(self._kinds, key=lambda name: (self._asked[name], running[name]))
        return min(self._kinds, key=lambda name: self.struck[name] + running[name])

    def carried(self, generations: Sequence[Mapping[str, Any]]) -> dict[str, list[Struck]]:
        """What would be struck, by pipeline; `generations` as a status has them."""
        by_pipeline: dict[str, list[Struck]] = {}
        begun = [one for one in self._live.values() if one[1].events >= BEGUN and not one[1].done]
        for line in generations:
            for name, answer in begun:
                if line["id"] in answer.generation_ids:
                    one = Struck(name, answer, line["id"], line["epoch"])
                    by_pipeline.setdefault(line["pipeline"], []).append(one)
        return by_pipeline


class Kills:
    """Ends engines of pipelines that carry answers."""

    def __init__(
        self, mesh: meshes.Mesh, load: Load, grants: Grants, randomness: random.Random
    ) -> None:
        self._mesh, self._load, self._grants, self._random = mesh, load, grants, randomness
        self._killed: set[int] = set()
        """Processes; a status may not know yet that they are gone."""
        self._struck: list[list[Struck]] = []
        """By kill."""

    @property
    def in_mid_answer(self) -> int:
        """Kills that struck something."""
        return sum(any(map(self._grants.moved, kill)) for kill in self._struck)

    async def kill(self) -> None:
        """Kills an engine of the pipeline whose kinds were struck least so far, once there is one,
        and waits until it is known what that struck. Raises TimeoutError."""
        async with asyncio.timeout(SETTLED_S):
            pids, struck = await self._found()
        pid = self._random.choice(pids)
        os.kill(pid, signal.SIGKILL)
        self._killed.add(pid)
        self._struck.append(struck)
        self._load.struck.update({one.kind for one in struck})
        await meshes.until(lambda: self._settled(struck), SETTLED_S)

    async def _found(self) -> tuple[list[int], list[Struck]]:
        while True:
            if ready := self._ready(await self._mesh.status()):
                return min(ready, key=self._struck_before)
            await asyncio.sleep(LOOK_S)

    def _ready(self, status: Mapping[str, Any]) -> list[tuple[list[int], list[Struck]]]:
        """Processes and answers of each pipeline that serves and carries any."""
        carried = self._load.carried(status["generations"])
        pids: dict[str, int] = {one["id"]: one["pid"] for one in status["nodes"] if one["pid"]}
        found = []
        for pipeline in status["pipelines"]:
            nodes = [stage["node"] for stage in pipeline["stages"]]
            members = [pids[node] for node in nodes if node in pids]
            lives = len(members) == len(nodes) and self._killed.isdisjoint(members)
            if pipeline["state"] == "ready" and lives and pipeline["id"] in carried:
                found.append((members, carried[pipeline["id"]]))
        return found

    def _struck_before(self, one: tuple[list[int], list[Struck]]) -> list[int]:
        return sorted(self._load.struck[struck.kind] for struck in one[1])

    def _settled(self, struck: Sequence[Struck]) -> bool:
        """One of them went on, or all have ended where they were."""
        over = (one.answer.done or one.answer.error for one in struck)
        return any(map(self._grants.moved, struck)) or all(over)

    def report(self) -> dict[str, Any]:
        """How many kills struck how many answers of which kinds, and how many of them moved."""
        moved = [one for kill in self._struck for one in kill if self._grants.moved(one)]
        return {
            "kills": self.in_mid_answer,
            "kills_that_struck_nothing": len(self._struck) - self.in_mid_answer,
            "struck": sum(map(len, self._struck)),
            "moved": len(moved),
            "moved_by_kind": dict(sorted(Counter(one.kind for one in moved).items())),
        }
