"""Prompts that begin alike, at pipelines that fetch the beginnings from each other's prefix caches.

They come in small crowds, with several choices, other salts and other ends; some are cancelled
while their blocks are on their way. Beside that is every fault of the other schedules, and blocks
travel and go ahead as in ahead.py: so holders die, are left, or say no, and fetches come late, in
part or not at all.

`python prefixes.py FIRST COUNT PATIENCE` as schedules.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from ahead import CopyingSchedule
from seeds import program

from services.common.generation import GenerationRequest, Sampling
from services.engine.core.prefix_fetching import PrefixSettings
from simulator.environment.settings import MODEL, SimulationSettings

FROM_S, CROWDS, BETWEEN_S, SPREAD_S = 1.2, 8, 0.9, 1.2
BEGINNINGS = 2
LENGTHS = (140, 180, 260)
ENDS = (1, 20, 60)
TOKENS = (2, 40, 60)
TWINS, TWIN_S = 0.4, 0.05
"""Share of them that ask twice, and how soon."""
CANCELLED, SOON_S = 0.3, 0.3
SALTED = 0.2


class PrefixSchedule(CopyingSchedule):
    """The same faults."""

    places = (2, 4)
    kv_blocks = (64,)

    def __init__(self, seed: int) -> None:
        self._prefixes = random = Random(f"{seed} prefixes")
        super().__init__(seed)
        for number in range(CROWDS):
            at_s = FROM_S + BETWEEN_S * (number + random.random())
            self.world.clock.after(at_s, self._crowd_comes, number)

    def _of_its_kind(self, settings: SimulationSettings) -> SimulationSettings:
        at_once = Random(f"{self.seed} at once").choice((1, 2, 4))
        prefixes = PrefixSettings(fetch_s=2.0, at_once=at_once)
        return replace(super()._of_its_kind(settings), prefixes=prefixes, routers=1)

    def _crowd_comes(self, number: int) -> None:
        """Three to six whose prompts begin with the same ids."""
        random = self._prefixes
        beginning = Random(f"{self.seed} {random.randrange(BEGINNINGS)}")
        prompt = [beginning.randrange(1000) for _ in range(random.choice(LENGTHS))]
        for one in range(random.choice((3, 4, 6))):
            end = [random.randrange(1000) for _ in range(random.choice(ENDS))]
            sampling = Sampling(
                random.choice(TOKENS), seed=random.randrange(9), eos_token_ids=(2,), ignore_eos=True
            )
            request = GenerationRequest(
                f"p{number}-{one}",
                MODEL,
                (*prompt, *end),
                sampling,
                choices=random.choice((1, 1, 2)),
                cache_salt="a" if random.random() < SALTED else "",
            )
            at_s = SPREAD_S * random.random()
            self.world.clock.after(at_s, self._come, request)
            if random.random() < TWINS:
                twin = replace(request, generation_id=f"{request.generation_id}-twin")
                self.world.clock.after(at_s + TWIN_S * random.random(), self._come, twin)

    def _come(self, request: GenerationRequest) -> None:
        client = self.world.ask(request)
        if self._prefixes.random() < CANCELLED:
            self.world.clock.after(SOON_S * self._prefixes.random(), client.cancel)


def happened(schedule: PrefixSchedule) -> Counter[str]:
    """What came of the fetches."""
    return schedule.world.environment.prefixes


if __name__ == "__main__":
    program(PrefixSchedule, happened)
