"""One pipeline whose nodes are taken again and again: who follows sits in the same seats, and finds
in its caches what was there.

Most often the node that is taken is not the head's, so that one process heads one formation after
the other, over the same few blocks. Generations come all the time, many of them alike in their
beginning; some are cancelled, so that what was copied of theirs is written over while the formation
goes on. Beside that is every fault of the other schedules.

`python seats.py FIRST COUNT PATIENCE` as schedules.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from ahead import NOTICE_S, CopyingSchedule
from seeds import program

from services.common.generation import GenerationRequest, Sampling
from simulator.environment.settings import MODEL, ONE, SHAPE, SimulationSettings

FROM_S, BETWEEN_S, NOTICES = 2.0, 1.3, 8
TAIL = 0.8
"""Share of the notices that leave the head where it is."""
COME, COME_BETWEEN_S = 32, 0.35
PROMPTS = (20, 40, 60, 90)
LENGTHS = (2, 20, 60, 90)
BEGINNINGS = 2
CANCELLED = 0.3


class SeatedSchedule(CopyingSchedule):
    """The same faults."""

    kv_blocks = (19, 19, 64)

    def __init__(self, seed: int) -> None:
        self._seats = random = Random(f"{seed} seats")
        super().__init__(seed)
        for number in range(NOTICES):
            at_s = FROM_S + BETWEEN_S * (number + random.random())
            self.world.clock.after(at_s, self._notice)
        for number in range(COME):
            at_s = 1.0 + COME_BETWEEN_S * (number + random.random())
            self.world.clock.after(at_s, self._come, number)

    def _of_its_kind(self, settings: SimulationSettings) -> SimulationSettings:
        alone = replace(
            settings.cluster, initial=(SHAPE,) * 2, expected_nodes=2, pipelines=1, spares=1
        )
        return replace(settings, cluster=alone, goals=ONE)

    def _come(self, number: int) -> None:
        random = self._seats
        beginning = Random(f"{self.seed} {random.randrange(BEGINNINGS)}")
        prompt = [beginning.randrange(1000) for _ in range(random.choice(PROMPTS))]
        if random.random() < 0.5:
            prompt += [random.randrange(1000) for _ in range(random.choice(PROMPTS))]
        sampling = Sampling(
            random.choice(LENGTHS), seed=number, eos_token_ids=(2,), ignore_eos=True
        )
        client = self.world.ask(GenerationRequest(f"s{number}", MODEL, tuple(prompt), sampling))
        if random.random() < CANCELLED:
            self.world.clock.after(0.2 + random.random(), client.cancel)

    def _notice(self) -> None:
        """A node of the pipeline, if it runs."""
        controller, random = self.world.controller, self._seats
        if not controller.alive or controller.frozen:
            return
        view = controller.cluster.view
        for head in view.heads(self.world.clock.now_s):
            first, *others = view.members(head.route.formation_id)
            taken = random.choice(others) if others and random.random() < TAIL else first
            if self._lives(taken.node_id):
                self.oracle.note("fault", "notice", taken.node_id)
                self.disruptions += 1
                self.world.provider.notice(taken.node_id, NOTICE_S, taken=True)


def _happened(schedule: SeatedSchedule) -> Counter[str]:
    return schedule.oracle.blocks


if __name__ == "__main__":
    program(SeatedSchedule, _happened)
