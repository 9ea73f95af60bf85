"""What every simulated process stands on: time, messages, chance, ids and settings."""

from __future__ import annotations

from collections import Counter
from random import Random

from simulator.environment.clock import Clock
from simulator.environment.network import SimulatedNetwork
from simulator.environment.settings import SimulationSettings


class Environment:
    """One seed decides all that happens in it. Processes find each other by their addresses in
    its network, and by nothing else."""

    def __init__(self, random: Random, settings: SimulationSettings) -> None:
        self.random = random
        self.settings = settings
        self.failing: set[str] = set()
        """What fails at present whoever tries it: launch, load."""
        self.kept_blocks: dict[bytes, bytes] = {}
        """KV blocks by name, that are kept behind the formations that computed them."""
        self.prefixes = Counter[str]()
        """What came of beginnings of prompts that were asked of other pipelines."""
        self.clock = Clock()
        self.network = SimulatedNetwork(self.clock, random)
        self._ids = 0

    def draw_id(self) -> str:
        """Unique in this environment."""
        self._ids += 1
        return f"x{self._ids}"

    def fails(self, what: str, share: float) -> bool:
        """Whether this attempt at a launch or a load fails."""
        return self.random.random() < share or what in self.failing
