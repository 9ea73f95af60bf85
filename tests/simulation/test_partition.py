"""A reader that does not reach its head, while the controller hears it beat and step."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from oracles import Oracle
from phases import head_of

from services.common.generation import GenerationRequest, Sampling
from services.controller.actions import NodeShape
from simulator.router import Client
from simulator.world import MODEL, World, WorldSettings

LONG_S = 60.0
MENDED_S = 15.0


class Partition:
    """A reader in the midst of its generation, with every router cut off from its head."""

    def __init__(self, *, nodes: int) -> None:
        self.oracle = Oracle(exact=True)
        settings = WorldSettings()
        initial = (NodeShape(1 << 30, 1.0),) * nodes
        cluster = replace(settings.cluster, initial=initial, expected_nodes=nodes)
        self.world = World(Random(7), replace(settings, cluster=cluster), self.oracle)
        self.oracle.world = self.world
        self.world.clock.run(2.0)
        sampling = Sampling(max_tokens=600, seed=3, eos_token_ids=(2,), ignore_eos=True)
        request = GenerationRequest("g", MODEL, (1, 2, 3), sampling)
        self.client = Client(self.world, request)
        self.world.clients.append(self.client)
        self.world.clock.run(4.0)
        head = head_of(self.world, self.client)
        assert head is not None
        self.head = head
        self.held = len(self.client.ids[0])
        assert self.held
        for router in self.world.routers:
            self.world.network.cut.add(frozenset((router.name, head.name)))
        self.began_s = self.world.clock.now_s

    def mend(self) -> None:
        """As TCP does, what was silent breaks."""
        self.world.network.cut.clear()
        for router in self.world.routers:
            for stream in [s for s in router.streams if s.server is self.head]:
                stream.break_line()

    def goes_on(self, within_s: float) -> bool:
        """Ids come again, so long behind the cut at most."""
        clock = self.world.clock
        return clock.run(self.began_s + within_s, lambda: len(self.client.ids[0]) > self.held)

    def ends_well(self) -> bool:
        clock = self.world.clock
        return clock.run(clock.now_s + LONG_S, lambda: self.client.ended) and not self.client.error


def test_a_reader_cut_off_from_a_living_head_goes_on_at_another_one_within_bounded_time() -> None:
    cut = Partition(nodes=4)
    assert cut.goes_on(2 * cut.world.settings.follower.reach_s + 1.0)
    assert cut.ends_well()
    assert cut.oracle.grants["g"] == 1
    assert "head_stalled" not in [kind for _, kind, _ in cut.oracle.events]


def test_a_reader_cut_off_from_the_only_head_waits_for_it_in_the_epoch_it_has() -> None:
    cut = Partition(nodes=2)
    assert not cut.goes_on(MENDED_S)
    assert cut.oracle.questions
    cut.mend()
    assert cut.goes_on(MENDED_S + 2.0)
    assert cut.ends_well()
    assert cut.oracle.grants["g"] == 0
