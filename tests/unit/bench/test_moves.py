from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from bench.moves import History, Move, Strike, pause_s

OFFSET_S = 1000.0


@dataclass(frozen=True)
class Told:
    """An event, at a time on the readers' clock."""

    at_s: float
    kind: str
    pipeline_id: str
    generation_id: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    node_id: str = ""

    @property
    def time_unix_s(self) -> float:
        return self.at_s + OFFSET_S


def ready(at_s: float, pipeline: str) -> Told:
    return Told(at_s, "pipeline_ready", pipeline)


def lost(at_s: float, pipeline: str) -> Told:
    return Told(at_s, "pipeline_lost", pipeline)


def granted(at_s: float, pipeline: str, planned: str = "false") -> Told:
    return Told(at_s, "generation_granted", pipeline, "g", {"planned": planned})


def strike(kind: str, at_s: float, pipeline: str, *names: str) -> Strike:
    return Strike(kind, at_s, pipeline, frozenset(names))


def history(strikes: list[Strike], *events: Told) -> History:
    return History.read([ready(0.0, "a"), ready(0.0, "b"), *events], strikes, OFFSET_S)


def only(moves: list[Move]) -> Move:
    assert len(moves) == 1
    return moves[0]


def test_a_kill_of_a_stream_that_runs_stands_alone() -> None:
    seen = history([strike("single", 5.0, "a", "g")], lost(5.1, "a"), granted(5.1, "b"))
    move = only(seen.moves({"g": [4.0, 4.9, 5.6, 5.7]}))
    assert (move.kind, move.alone, move.grants) == ("single", True, 1)
    assert move.detection_s == pytest.approx(0.1)
    assert move.replay_s == pytest.approx(0.5)
    assert move.gap_s == pytest.approx(0.7)
    assert seen.left_standing_s() == pytest.approx([0.1])


def test_a_wait_behind_earlier_kills_is_not_the_last_ones() -> None:
    kills = [
        strike("prelude", 5.0, "b"),
        strike("solo", 6.0, "a", "g"),
        strike("single", 11.0, "a", "g"),
    ]
    seen = history(
        kills,
        lost(5.1, "b"),
        lost(6.1, "a"),
        ready(10.0, "a"),
        granted(10.1, "a"),
        ready(10.5, "b"),
        granted(11.2, "b"),
    )
    move = only(seen.moves({"g": [5.9, 12.0]}))
    assert (move.kind, move.alone, move.grants) == ("single", False, 2)
    assert move.grants_to_dead == 0
    assert move.gap_s == pytest.approx(6.1)
    assert seen.left_standing_s() == pytest.approx([0.1, 0.2])


def test_a_kill_behind_a_planned_move_stands_not_alone() -> None:
    kills = [strike("single", 5.5, "b", "g")]
    seen = history(kills, granted(5.0, "b", "true"), granted(5.6, "a"))
    assert not only(seen.moves({"g": [4.9, 6.0]})).alone


def test_a_grant_to_a_head_that_was_killed_before_is_told_apart() -> None:
    kills = [strike("pair", 5.0, "a", "g"), strike("pair", 5.0, "b")]
    seen = history(
        kills, granted(5.1, "b"), lost(5.2, "a"), lost(5.2, "b"), ready(8.0, "a"), granted(8.1, "a")
    )
    move = only(seen.moves({"g": [4.9, 8.5]}))
    assert (move.grants, move.grants_to_dead) == (2, 1)
    assert seen.left_standing_s() == pytest.approx([0.1])


def test_a_wait_for_a_head_while_another_serves_shows() -> None:
    seen = history([strike("single", 5.0, "a", "g")], lost(5.1, "a"), granted(10.0, "b"))
    assert seen.left_standing_s() == pytest.approx([5.0])


def test_a_head_that_hands_over_serves_nothing_new() -> None:
    begun = Told(4.0, "handover_started", "b")
    kills = [strike("single", 5.0, "a", "g")]
    seen = history(kills, begun, lost(5.1, "a"), ready(7.0, "b"), granted(7.5, "b"))
    assert seen.left_standing_s() == pytest.approx([0.5])


def test_a_grant_may_be_told_before_its_pipeline_is() -> None:
    kills = [strike("solo", 5.0, "a", "g"), strike("prelude", 4.0, "b")]
    seen = history(kills, lost(5.1, "a"), granted(7.95, "a"), ready(8.0, "a"), granted(9.0, "a"))
    assert seen.left_standing_s() == pytest.approx([0.0])
    assert only(seen.moves({"g": [4.9, 9.5]})).grants_to_dead == 0


def test_a_pause_lies_between_a_loss_and_the_launch_of_what_takes_the_seat() -> None:
    events = [
        Told(4.0, "node_launched", "a", node_id="n1"),
        Told(5.1, "node_lost", "", node_id="n1"),
        lost(5.1, "a"),
        Told(5.2, "node_launched", "b", node_id="n2"),
        Told(7.1, "node_launched", "a", node_id="n3"),
        ready(9.0, "a"),
    ]
    assert pause_s(events, "n1", "a", 5.0, OFFSET_S) == pytest.approx(2.0)


def test_a_seat_that_somebody_idle_takes_was_not_paused() -> None:
    events = [
        Told(5.1, "node_lost", "", node_id="n1"),
        ready(6.0, "a"),
        Told(8.0, "node_launched", "a", node_id="n4"),
    ]
    assert pause_s(events, "n1", "a", 5.0, OFFSET_S) == 0.0
