"""Formations that depart: nobody launches nodes, a market takes some of those there are, and the
others go on alone.

In two thirds of the schedules something else happens meanwhile: the controller crashes, the node is
taken sooner than was said, or told so a second time, a head freezes, a router's line breaks, or a
node comes that may take the seat. In the others nothing moves but by the departure. In every second
one KV blocks travel: some come late, in part or not at all. In the end a node comes, and all is as
before. Run as a program with seeds it prints the first violation.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from oracles import Oracle
from seeds import program
from watch import judged

from services.common.generation import GenerationRequest, PriorityClass, Sampling
from services.common.notices import NoticeKind
from simulator.environment.settings import MODEL, SHAPE, SimulationSettings
from simulator.processes.engine import SimulatedEngine
from simulator.world import World

NOTICES_S = (2.5, 5.0, 10.0)
LENGTHS = (8, 60, 300, 900)
READY_S = 2.5
"""By then two pipelines serve."""
END_S = 120.0
QUIET_S = 12.0
TROUBLES = ("crash", "taken", "sooner", "freeze", "break", "newcomer")


class Departing:
    """One world, of which a node is taken."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        settings = SimulationSettings(exact=seed % 4 < 2)
        cluster = replace(settings.cluster, can_launch=False, initial=(), seal_s=0.6)
        batches = replace(settings.scheduler, max_sequences=random.choice((2, 4)))
        settings = replace(
            settings,
            cluster=cluster,
            scheduler=batches,
            kv_blocks=256,
            step_s=0.02,
            kv_travels=seed % 2 < 1,
        )
        self.oracle = Oracle(exact=settings.exact)
        self.world = World(random, settings, self.oracle)
        self.oracle.world = self.world
        for number in range(4):
            self.world.provider._started(f"node-{number}", SHAPE)
        self.trouble = random.choice(TROUBLES) if seed % 3 else ""
        self.arrivals = random.randint(1, 5)
        self._come = 0
        for _ in range(self.arrivals):
            self.world.clock.after(READY_S + 0.5 * random.random(), self._arrive)
        self.world.clock.after(READY_S + 0.6 + random.random(), self._take)

    def _arrive(self) -> None:
        random = self.random
        tokens, number = random.choice(LENGTHS), self._come
        self._come += 1
        sampling = Sampling(
            max_tokens=tokens, seed=number, eos_token_ids=(2,), ignore_eos=random.random() < 0.7
        )
        prompt = tuple(random.randrange(1000) for _ in range(random.choice((3, 40, 200))))
        self.world.ask(
            GenerationRequest(
                f"g{number}",
                MODEL,
                prompt,
                sampling,
                choices=random.choice((1, 1, 2)),
                priority=random.choice(tuple(PriorityClass)),
            )
        )

    def _take(self) -> None:
        """A node of a pipeline that runs something, where there is one."""
        random, world = self.random, self.world
        heads = [e for e in world.engines if e.place and e.core.open_generations]
        head = random.choice(heads or [e for e in world.engines if e.place])
        members = head.place.members if head.place is not None else ()
        victim = random.choice(world.engines_of(members))
        notice_s = random.choice(NOTICES_S)
        victim.depart(notice_s, NoticeKind.SPOT)
        if self.trouble:
            self.oracle.hurried = True
            self.world.clock.after(notice_s * random.random(), self._strike, head, victim)

    def _strike(self, head: SimulatedEngine, victim: SimulatedEngine) -> None:
        random, world = self.random, self.world
        if self.trouble == "crash":
            world.crash_controller(0.2 + random.random())
        elif self.trouble == "newcomer":
            world.provider._started("node-9", SHAPE)
        elif not victim.alive or not head.alive:
            return
        elif self.trouble == "taken":
            victim.kill()
        elif self.trouble == "sooner":
            victim.depart(0.8, NoticeKind.SPOT)
        elif self.trouble == "freeze":
            head.freeze()
            world.clock.after(0.3 + 2.0 * random.random(), head.thaw)
        elif self.trouble == "break":
            router = random.choice(world.routers)
            world.network.overrun_for(router, head, 0.5 + random.random())

    def run(self) -> None:
        """Raises Violation."""
        judged(self._run)

    def _run(self) -> None:
        world, oracle = self.world, self.oracle

        def done() -> bool:
            return len(world.clients) == self.arrivals and all(c.ended for c in world.clients)

        world.clock.run(END_S, done)
        oracle.check_ended()
        if not self.trouble:
            oracle.check_grants(0, 1)
        world.clock.run(world.clock.now_s + QUIET_S)
        world.provider._started("node-8", SHAPE)
        world.clock.run(world.clock.now_s + QUIET_S, oracle.serves)
        oracle.check_departures(0 if self.trouble else 1)
        oracle.check_one_sequence()
        oracle.check_serves()
        oracle.check_rest()


def _happened(schedule: Departing) -> Counter[str]:
    oracle = schedule.oracle
    moved = sum(oracle.planned.values())
    by_end = {"departures": oracle.departures, "stayed": oracle.stayed, "moved": moved}
    return Counter({**by_end, schedule.trouble: 1})


if __name__ == "__main__":
    program(Departing, _happened)
