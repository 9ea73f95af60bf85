"""Schedules in which blocks travel, and of some generations rounded: their ids from there on are
what nobody else computes.

Most of those that begin alike ask for it, so that each would find the others' blocks if these were
not its own. `python rounding.py FIRST COUNT PATIENCE` as schedules.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from ahead import CopyingSchedule
from seeds import program

from services.common.generation import GenerationRequest
from simulator.processes.client import Client

TOLERANT = 0.7
"""Share of the generations that ask for it."""


class RoundingSchedule(CopyingSchedule):
    """The same faults, of stages that are exact."""

    def __init__(self, seed: int) -> None:
        self._tolerant = Random(f"{seed} tolerant")
        super().__init__(2 * seed)

    def _crowd(self, random: Random, name: str, at_s: float) -> None:
        """None comes: what is its own is read by each."""

    def _ask(self, request: GenerationRequest) -> Client:
        if self._tolerant.random() < TOLERANT:
            request = replace(request, sampling=replace(request.sampling, kv_int8=True))
        return super()._ask(request)


def happened(schedule: RoundingSchedule) -> Counter[str]:
    """Generations that asked for it, and those that the journal has declared."""
    asked = sum(client.request.sampling.kv_int8 for client in schedule.world.clients)
    return Counter(asked=asked, declared=len(schedule.oracle._inexact_from))


if __name__ == "__main__":
    program(RoundingSchedule, happened)
