"""Hundreds of readers on few slots of a busy machine, and nothing is lost: nothing may move.

Every process lags now and then for up to a second or so: frames, beats and timers are late, and
steps take far longer than they should. In half of the crowds all connections of a router to a head
break at once now and then, and new ones do not come to stand for a while: on a busy machine pings
go unanswered, too. Run as a program with seeds it prints the first violation.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from oracles import Oracle
from seeds import program

from services.common.generation import GenerationRequest, Sampling
from services.router.core.follower_settings import FollowerSettings
from simulator.environment.network import Process
from simulator.environment.settings import MODEL, SimulationSettings
from simulator.world import World

READERS = (150, 250, 400)
LAG_S = 1.2
AWAKE_S = 1.0
ARRIVE_S = 1.5
OVERRUN_S = 3.0
END_S = 600.0
OUT_OF_REACH_S = 10.0
"""More than anybody is without a connection."""
RECOVER_S = 5.0
"""Far less than most readers wait for their turn: to be queued is no trouble."""


class Crowd:
    """One world and the crowd that comes to it."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        settings = SimulationSettings(exact=seed % 2 == 0)
        self.oracle = Oracle(exact=settings.exact)
        cluster = replace(settings.cluster, progress_s=5.0, node_lost_s=3.0)
        self.overrun = seed % 4 < 2
        follower = FollowerSettings(recover_s=OUT_OF_REACH_S if self.overrun else RECOVER_S)
        head = replace(settings.head, detach_s=OUT_OF_REACH_S)
        settings = replace(settings, cluster=cluster, follower=follower, head=head)
        self.world = World(random, settings, self.oracle)
        self.oracle.world = self.world
        self.readers = random.choice(READERS)
        for number in range(self.readers):
            self.world.clock.after(ARRIVE_S + random.random(), self._arrive, number)
        self.world.clock.after(ARRIVE_S, self._be_busy)
        if self.overrun:
            self.world.clock.after(ARRIVE_S + AWAKE_S, self._overrun)

    def _arrive(self, number: int) -> None:
        random = self.random
        sampling = Sampling(
            max_tokens=random.choice((1, 2, 4)), seed=number, eos_token_ids=(2,), ignore_eos=True
        )
        prompt = tuple(random.randrange(1000) for _ in range(3))
        request = GenerationRequest(f"g{number}", MODEL, prompt, sampling)
        self.world.ask(request)

    def _be_busy(self) -> None:
        world = self.world
        for process in (world.controller, *world.routers, *world.engines):
            self._lag(process)

    def _lag(self, process: Process) -> None:
        """It has the machine for a moment, and then waits for it."""
        process.lag(LAG_S * self.random.random())
        again_s = LAG_S + AWAKE_S * self.random.random()
        self.world.clock.after(again_s, self._lag, process)

    def _overrun(self) -> None:
        """No connection of a router to a head holds."""
        world, random = self.world, self.random
        router, engine = random.choice(world.routers), random.choice(world.engines)
        world.network.overrun_for(router, engine, OVERRUN_S * random.random())
        world.clock.after(OVERRUN_S + AWAKE_S * random.random(), self._overrun)

    def run(self) -> None:
        """Raises Violation."""
        world, oracle = self.world, self.oracle

        def done() -> bool:
            return len(world.clients) == self.readers and all(c.ended for c in world.clients)

        world.clock.run(END_S, done)
        oracle.check_ended()
        if self.overrun:
            oracle.check_unmoved()
        else:
            oracle.check_stillness()
        oracle.check_one_sequence()
        world.clock.run(world.clock.now_s + 30.0)
        oracle.check_serves()


if __name__ == "__main__":
    program(Crowd, lambda crowd: {"readers": crowd.readers})
