"""One fault at one head, and how long its reader waits."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from oracles import Oracle
from phases import head_of

from services.common.generation import GenerationRequest, Sampling
from simulator.environment.settings import MODEL, SHAPE, SimulationSettings
from simulator.world import World

LONG_S = 60.0
MENDED_S = 15.0


class Reading:
    """A reader in the midst of its generation."""

    def __init__(self, *, nodes: int = 4, beats_per_s: float = 1000.0) -> None:
        self.oracle = Oracle(exact=True)
        settings = SimulationSettings()
        initial = (SHAPE,) * nodes
        cluster = replace(
            settings.cluster, initial=initial, expected_nodes=nodes, beats_per_s=beats_per_s
        )
        self.world = World(Random(7), replace(settings, cluster=cluster), self.oracle)
        self.oracle.world = self.world
        self.world.clock.run(2.0)
        sampling = Sampling(max_tokens=600, seed=3, eos_token_ids=(2,), ignore_eos=True)
        request = GenerationRequest("g", MODEL, (1, 2, 3), sampling)
        self.client = self.world.ask(request)
        self.world.clock.run(4.0)
        head = head_of(self.world, self.client)
        assert head is not None
        self.head = head
        self.held = len(self.client.ids[0])
        assert self.held
        self.struck_s = self.world.clock.now_s

    def cut_off(self) -> None:
        """No router reaches the head, which the controller hears beat and step."""
        for router in self.world.routers:
            self.world.network.cut.add(frozenset((router.name, self.head.name)))

    def mend(self) -> None:
        """As TCP does, what was silent breaks."""
        self.world.network.cut.clear()
        for router in self.world.routers:
            for stream in [s for s in router.streams if s.server is self.head]:
                stream.break_line()

    def went_on_s(self, limit_s: float) -> float:
        """How long after the fault ids came again; the limit if they did not. What was under way
        when it struck does not count."""
        clock = self.world.clock
        clock.run(self.struck_s + 0.1)
        self.held = len(self.client.ids[0])
        clock.run(self.struck_s + limit_s, lambda: len(self.client.ids[0]) > self.held)
        return clock.now_s - self.struck_s

    def ends_well(self) -> bool:
        clock = self.world.clock
        return clock.run(clock.now_s + LONG_S, lambda: self.client.ended) and not self.client.error


def test_a_reader_cut_off_from_a_living_head_goes_on_at_another_one_within_bounded_time() -> None:
    reading = Reading()
    reading.cut_off()
    assert reading.went_on_s(LONG_S) <= 2 * reading.world.settings.follower.reach_s + 1.0
    assert reading.ends_well()
    assert reading.oracle.grants["g"] == 1
    assert "head_stalled" not in [kind for _, kind, _ in reading.oracle.events]


def test_a_reader_cut_off_from_the_only_head_waits_for_it_in_the_epoch_it_has() -> None:
    reading = Reading(nodes=2)
    reading.cut_off()
    assert reading.went_on_s(MENDED_S) == MENDED_S
    assert reading.oracle.questions
    reading.mend()
    assert reading.went_on_s(LONG_S) <= MENDED_S + 2.0
    assert reading.ends_well()
    assert reading.oracle.grants["g"] == 0


def test_a_head_that_beats_and_makes_no_step_is_left() -> None:
    reading = Reading()
    reading.head.wedged = True
    progress_s = reading.world.settings.cluster.progress_s
    assert progress_s <= reading.went_on_s(LONG_S) <= progress_s + 1.0
    assert reading.ends_well()
    assert reading.oracle.grants["g"] == 1


def test_a_head_that_is_stopped_is_left_before_its_node_counts_as_lost() -> None:
    reading = Reading()
    reading.head.freeze()
    settings = reading.world.settings.cluster
    assert reading.went_on_s(LONG_S) <= settings.stall_s + 0.5 < settings.node_lost_s
    reading.world.clock.after(1.0, reading.head.thaw)
    assert reading.ends_well()
    assert reading.oracle.grants["g"] == 1


def test_nodes_that_are_told_to_beat_seldom_are_not_lost_and_a_stopped_one_is_left() -> None:
    """So much later as beats are further apart: four nodes, a beat a second of them all."""
    reading = Reading(beats_per_s=1.0)
    world, settings = reading.world, reading.world.settings.cluster
    assert world.controller.cluster.tell_interval_s(reading.head.name) == 4.0
    kinds = [kind for _, kind, _ in reading.oracle.events]
    assert not {"head_stalled", "node_lost"} & set(kinds)
    reading.head.freeze()
    later_s = 4.0 - settings.heartbeat_interval_s
    assert settings.stall_s <= reading.went_on_s(LONG_S) <= settings.stall_s + later_s + 0.5
    world.clock.after(1.0, reading.head.thaw)
    assert reading.ends_well()
    assert reading.oracle.grants["g"] == 1


def test_a_head_that_dies_is_left_at_once() -> None:
    reading = Reading()
    reading.head.kill()
    assert reading.went_on_s(LONG_S) <= 0.5
    assert reading.ends_well()


def test_a_head_that_is_slow_for_a_second_keeps_its_reader() -> None:
    reading = Reading()
    for process in (reading.head, reading.world.controller, *reading.world.routers):
        process.lag(1.2)
    assert reading.ends_well()
    assert (reading.oracle.grants["g"], reading.oracle.questions) == (0, 0)


@pytest.mark.parametrize("load_attempts", [3, 1000])
def test_a_node_stopped_for_good_as_it_is_to_load_is_replaced(load_attempts: int) -> None:
    """Once it has had its attempts, or has been silent for longer than a node that loads may be."""
    reading = Reading()
    world, serves = reading.world, reading.oracle.serves
    cluster = replace(world.settings.cluster, planner="another", load_attempts=load_attempts)
    world.environment.settings = replace(world.environment.settings, cluster=cluster)
    world.crash_controller(1.0)
    world.clock.run(world.clock.now_s + 1.0)
    reading.head.freeze()
    frozen_s = world.clock.now_s
    assert not world.clock.run(frozen_s + cluster.node_lost_s, serves)
    longest_s = cluster.empty_node_lost_s + cluster.restart_grace_s + cluster.retry_max_s
    assert world.clock.run(frozen_s + longest_s, serves)
