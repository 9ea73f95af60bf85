"""Schedules in which blocks travel, and go ahead of what is handed over while it is served.

Beside the faults of every schedule nodes of pipelines that run something are told that they will be
taken, when there is somebody to go on with it: another pipeline that serves or, where there is but
one, who follows in its seats. Around some of these notices a few come who begin
alike: some wait for a place while the prompt of another one is being read.

`python ahead.py FIRST COUNT PATIENCE` as schedules.py.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from schedules import Schedule, table
from seeds import program

from services.common.generation import GenerationRequest, Sampling
from simulator.environment.settings import MODEL, ONE, SHAPE, SimulationSettings

NOTICE_S = 5.0
FROM_S, BETWEEN_S = 2.2, 3.0
ALONE = 0.25
"""Share of the schedules with one pipeline."""
CROWDED = 0.6
"""Share of the notices around which some come who begin alike."""
PROMPTS = {19: 193, 64: 640}
"""How long theirs are, by the blocks there are."""


class CopyingSchedule(Schedule):
    """The same faults; what is fetched comes late, in part or not at all."""

    places = (2, 2, 3, 4)
    kv_blocks = (19, 64, 64)
    ahead_s = 1.0

    def __init__(self, seed: int) -> None:
        self._notices = Random(f"{seed} notices")
        super().__init__(seed)
        self._long.update(n for n in range(self._arrivals) if self._notices.random() < 0.7)
        crowds, at_s = Random(f"{seed} crowds"), FROM_S
        for number in range(self._notices.choice((0, 1, 2))):
            notice_s = at_s + self._notices.random()
            self.world.clock.after(notice_s, self._notice)
            if crowds.random() < CROWDED:
                self._crowd(crowds, f"c{number}", notice_s)
            at_s += BETWEEN_S

    def _of_its_kind(self, settings: SimulationSettings) -> SimulationSettings:
        cluster = settings.cluster
        others = len(cluster.initial) != cluster.expected_nodes or settings.goals != ONE
        if others or Random(f"{self.seed} alone").random() >= ALONE:
            return settings
        alone = replace(cluster, initial=(SHAPE,) * 2, expected_nodes=2, pipelines=1)
        return replace(settings, cluster=alone)

    def _crowd(self, random: Random, name: str, at_s: float) -> None:
        """Two decode for long; of the others three by three have one prompt, which takes long to
        be read."""
        length, prompt = PROMPTS[self.world.settings.kv_blocks], (1,)
        for number in range(random.choice((5, 8, 11))):
            decodes = number < 2
            if number % 3 == 2:
                prompt = tuple(random.randrange(1000) for _ in range(length))
            sampling = Sampling(
                150 if decodes else 4, seed=number, eos_token_ids=(2,), ignore_eos=decodes
            )
            request = GenerationRequest(f"{name}{number}", MODEL, prompt, sampling)
            self.world.clock.after(at_s + 0.02 * number, self._ask, request)

    def _notice(self) -> None:
        """A node of a pipeline that runs something, where another one serves or there is none."""
        controller = self.world.controller
        if not controller.alive or controller.frozen:
            return
        view = controller.cluster.view
        serving = [head.route.formation_id for head in view.heads(self.world.clock.now_s)]
        busy = [name for name in serving if controller.ledger.streams(name)]
        if len(serving) < min(2, len(view.pipelines())) or not busy:
            return
        node_id = self._notices.choice(view.members(self._notices.choice(busy))).node_id
        if self._lives(node_id):
            self.oracle.note("fault", "notice", node_id)
            self.disruptions += 1
            self.world.provider.notice(node_id, NOTICE_S, taken=True)


if __name__ == "__main__":
    program(CopyingSchedule, lambda schedule: schedule.hits, table)
