"""The cluster bench in small: its counts and ratios, not its times."""

from __future__ import annotations

import asyncio

from bench.cluster import losses
from bench.cluster_jumps import FOLD_S, Jumps, idle_day, writes_of_a_loss
from bench.cluster_made import BEAT_S, STAGES


def test_a_loss_writes_as_much_in_a_large_cluster_as_in_a_small_one() -> None:
    small, large = writes_of_a_loss(8), writes_of_a_loss(120)
    assert (small.writes, small.notes) == (large.writes, large.notes)
    assert large.size_bytes < 1.1 * small.size_bytes
    assert large.whole_bytes > 10 * small.whole_bytes


def test_an_idle_hour_is_a_few_looks_and_loses_nobody() -> None:
    hour_s = 3600.0
    idle = idle_day(20, hour_s)
    assert idle.lost == 0
    assert idle.beats == 20 * hour_s / BEAT_S
    assert idle.runs == 20 * hour_s / FOLD_S
    assert idle.advances <= 3 * hour_s / FOLD_S, "no more for more nodes or beats"


def test_who_is_silent_in_a_run_of_beats_is_lost_all_the_same() -> None:
    world = Jumps(8)
    silent = world.formations.pop("node-2")
    world.idle(60.0)
    assert silent not in world.formations.values(), "its pipeline has formed anew"
    assert world.said["node_lost"] == 1
    assert world.said["head_stalled"] == 0, "its head served until then"


def test_many_losses_are_acted_upon_and_nobody_else_is_lost() -> None:
    figures = asyncio.run(losses(10 * STAGES, 10))
    assert figures["falsely_lost"] == 0
