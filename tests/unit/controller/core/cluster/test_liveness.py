"""Beats in, verdicts out; the cluster acts upon them elsewhere."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from random import Random

import pytest

from services.common.errors import NotFound
from services.common.notices import NoticeKind
from services.controller.core.cluster.actions import Beat
from services.controller.core.cluster.liveness import (
    Advised,
    Departs,
    Liveness,
    Misses,
    Serves,
    Silent,
    Stalled,
    Strays,
    Verdict,
)
from tests.unit.controller.small_cluster import SETTINGS

INTERVAL_S = 0.25
WATCHED = replace(SETTINGS, node_lost_s=3.0)
JUMPING = replace(WATCHED, glance_s=inf)
"""No gap between two looks is unwatched time."""


def _beat(name: str, **more: object) -> Beat:
    return Beat(name, f"i-{name}", **{"formation_id": "f1", **more})  # type: ignore[arg-type]


def _watching(*names: str, settings: object = JUMPING) -> Liveness:
    """Members of f1, the first of which leads it."""
    liveness = Liveness(settings, 0.0)  # type: ignore[arg-type]
    for name in names:
        liveness.watch(name, f"i-{name}", 0.0, confirmed=True)
        liveness.carry(f"i-{name}", True)
        liveness.belong(f"i-{name}", "f1", 0.0, leads=name == names[0])
    return liveness


def test_silence_is_doubt_then_a_stalled_head_then_a_loss() -> None:
    liveness = _watching("a", "b")
    assert liveness.trusts("i-a", 1.0)
    assert not liveness.trusts("i-a", 1.001)
    assert liveness.wakes_at_s() == 2.0
    assert liveness.look(1.999) == []
    assert liveness.look(2.0) == [Stalled("a", "silence")]
    assert liveness.wakes_at_s() == 3.0
    assert {v.node_id for v in liveness.look(3.0) if isinstance(v, Silent)} == {"a", "b"}
    assert liveness.silent_s("i-a", 3.0) == 3.0


def test_of_many_each_is_told_to_beat_more_seldom_and_is_late_by_that_much_later() -> None:
    liveness = _watching("a", "b", settings=replace(JUMPING, beats_per_s=2.0))
    assert liveness.tell_interval_s("i-a") == 1.0
    assert liveness.trusts("i-a", 1.75)
    assert not liveness.trusts("i-a", 1.751)
    assert not liveness.trusts("i-b", 1.001), "it was told nothing of the kind"
    assert liveness.look(2.749) == []
    assert liveness.look(2.75) == [Stalled("a", "silence")]
    assert liveness.look(3.0) == [Silent("b")]
    liveness.forget("i-b")
    assert liveness.hear(_beat("a"), 3.0) == [Serves("a")]
    assert liveness.look(5.749) == []
    assert liveness.tell_interval_s("i-a") == 0.5, "there are fewer now"
    assert liveness.wakes_at_s() == 5.25
    assert liveness.look(5.749) == [Stalled("a", "silence")]
    assert liveness.look(6.25) == [Silent("a")]
    assert liveness.tell_interval_s("nobody") == 0.5


def test_who_is_known_from_notes_may_wait_for_an_older_controller_first() -> None:
    """Two of half a second each: an older controller is missed up to four beats later."""
    liveness = Liveness(replace(JUMPING, beats_per_s=4.0), 0.0)
    for name in ("a", "b"):
        liveness.watch(name, f"i-{name}", 0.0, confirmed=False)
        liveness.carry(f"i-{name}", True)
    later_s = 4 * (0.5 - INTERVAL_S)
    liveness.hear(_beat("b", formation_id=""), 2.0)
    assert liveness.look(3.0 + later_s - 0.001) == []
    assert liveness.look(3.0 + later_s) == [Silent("a")]
    liveness.forget("i-a")
    assert liveness.look(5.0) == [Silent("b")], "it is known how often that one beats"


def test_a_sleep_is_no_restart() -> None:
    """Who lives has to find a new controller, but not one that slept."""
    liveness = _watching("a", settings=replace(WATCHED, restart_grace_s=60.0))
    liveness.look(0.25)
    assert liveness.look(1000.0) == []
    now_s = 1000.0
    while now_s < 1003.0 - INTERVAL_S:
        now_s += INTERVAL_S
        assert liveness.look(now_s) == []
    assert Silent("a") in liveness.look(1003.0)


def test_few_are_told_the_regular_interval_and_are_judged_by_it() -> None:
    liveness = _watching("a", "b")
    assert liveness.tell_interval_s("i-a") == INTERVAL_S
    assert liveness.look(2.0) == [Stalled("a", "silence")]


def test_a_head_that_beats_and_makes_no_step_stalls_until_it_does() -> None:
    liveness = _watching("a")
    for quarter in range(1, 21):
        assert liveness.hear(_beat("a", has_work=True), quarter * INTERVAL_S) == []
    assert liveness.look(5.0) == [Stalled("a", "no steps")]
    assert liveness.hear(_beat("a", has_work=True), 5.25) == []
    assert liveness.hear(_beat("a", has_work=True, steps=1), 5.5) == [Serves("a")]
    assert liveness.hear(_beat("a"), 5.75) == []


def test_an_idle_head_does_not_stall() -> None:
    liveness = _watching("a")
    assert liveness.hear_until(_beat("a"), 0.0, 100.0) == []
    assert liveness.look(100.0) == []
    assert liveness.wakes_at_s() == 102.0


def test_a_node_that_holds_nothing_may_be_silent_for_longer() -> None:
    liveness = _watching("a", "b")
    liveness.carry("i-b", False)
    assert liveness.look(3.0) == [Silent("a")]
    liveness.forget("i-a")
    assert liveness.wakes_at_s() == JUMPING.empty_node_lost_s
    liveness.carry("i-b", True)
    assert liveness.look(3.0) == [Silent("b")]


def test_who_names_another_formation_twice_in_a_row_strays() -> None:
    liveness = _watching("a")
    assert liveness.hear(_beat("a", formation_id="f0"), 0.1) == []
    assert liveness.hear(_beat("a"), 0.2) == []
    assert liveness.hear(_beat("a", formation_id=""), 0.3) == []
    assert liveness.hear(_beat("a", formation_id=""), 0.4) == [Strays("a", "")]
    liveness.belong("i-a", None, 0.5)  # it is being formed: nobody knows when
    for _ in range(3):
        assert liveness.hear(_beat("a"), 0.5) == []
    liveness.belong("i-a", "", 0.5)
    assert [liveness.hear(_beat("a"), 0.6) for _ in range(2)] == [[], [Strays("a", "f1")]]
    assert [liveness.hear(_beat("a", formation_id=""), 0.6) for _ in range(2)] == [[], []]


def test_what_a_beat_tells_beside_that_it_lives() -> None:
    liveness = _watching("a")
    assert liveness.hear(_beat("a", lost_node_ids=("b",)), 0.1) == [Misses("a", ("b",))]
    assert liveness.hear(_beat("a", departs_in_s=20.0), 0.1) == [
        Departs("a", 20.0, NoticeKind.SHUTDOWN)
    ]
    liveness.hear(_beat("a", sampled_tokens=7), 0.1)
    assert liveness.sampled("i-a") == 7


def test_who_is_not_watched_must_register() -> None:
    liveness = _watching("a")
    for beat in (_beat("b"), Beat("b", "i-a", "f1")):
        with pytest.raises(NotFound, match="register"):
            liveness.hear(beat, 0.0)
    liveness.forget("i-a")
    with pytest.raises(NotFound):
        liveness.hear(_beat("a"), 0.0)


@pytest.mark.parametrize("beat_first", [False, True])
def test_nobody_is_silent_while_nobody_listens(beat_first: bool) -> None:
    """However long, and whichever is first behind it: a look or somebody's beat."""
    liveness = _watching("a", "b", settings=WATCHED)
    assert liveness.wakes_at_s() == WATCHED.glance_s
    liveness.look(0.25)
    now_s = 1000.0
    if beat_first:
        assert liveness.hear(_beat("b"), now_s) == []
    assert liveness.look(now_s) == []
    said = list[tuple[float, Verdict]]()
    while now_s < 1010.0:
        now_s += INTERVAL_S
        liveness.hear(_beat("b"), now_s)
        for verdict in liveness.look(now_s):
            said.append((now_s, verdict))
            liveness.forget(f"i-{verdict.node_id}")
    grace_s = WATCHED.restart_grace_s
    # what was silent before and behind the gap counts, but for the grace that everyone is given
    assert said == [(1000.0 + grace_s, Silent("a"))]


def test_a_short_gap_gives_no_grace_and_is_no_silence() -> None:
    liveness = _watching("a", settings=WATCHED)
    now_s = 0.0
    while not (verdicts := liveness.look(now_s)):
        now_s += 0.75  # of which 0.25 s were watched
    assert verdicts == [Stalled("a", "silence")]
    assert now_s == 0.75 * 8


def test_a_restart_gives_grace_and_trusts_nobody_before_it_was_heard() -> None:
    liveness = Liveness(JUMPING, 100.0, grace_s=5.0)
    liveness.watch("a", "i-a", 100.0, confirmed=False)
    liveness.carry("i-a", True)
    assert not liveness.trusts("i-a", 100.0)
    assert liveness.wakes_at_s() == 105.0
    assert liveness.look(104.9) == []
    liveness.hear(_beat("a", formation_id=""), 104.9)
    assert liveness.trusts("i-a", 105.0)
    assert liveness.look(105.0) == []


# Folding


def _life(random: Random, until_s: float) -> list[tuple[float, float, dict[str, object]]]:
    """Stretches of regular beats and of silence: from when, to when (the last beat), and how."""
    stretches, now_s, steps = [], 0.0, 0
    while now_s < until_s:
        beats = random.choice((1, 2, 5, 40, 400))
        steps += random.choice((0, 0, 1))
        how: dict[str, object] = {"steps": steps, "has_work": random.random() < 0.5}
        last_s = now_s + (beats - 1) * INTERVAL_S
        stretches.append((now_s, last_s, how))
        now_s = last_s + INTERVAL_S * random.choice((1, 1, 4, 5, 9, 13, 60))
    return stretches


def _verdicts(seed: int, *, fold: bool) -> tuple[list[tuple[float, Verdict]], int]:
    """What is said and when, and how many calls it took."""
    random = Random(seed)
    names = ("a", "b", "c")
    liveness = _watching(*names)
    events: list[tuple[float, float, str, dict[str, object]]] = []
    for name in names:
        for first_s, last_s, how in _life(random, 600.0):
            moments = round((last_s - first_s) / INTERVAL_S) + 1
            if fold:
                events.append((first_s, last_s, name, how))
            else:
                at = [first_s + index * INTERVAL_S for index in range(moments)]
                events += [(moment, moment, name, how) for moment in at]
    said: list[tuple[float, Verdict]] = []
    calls = 0

    def look(now_s: float) -> None:
        nonlocal calls
        calls += 1
        for verdict in sorted(liveness.look(now_s), key=str):
            said.append((now_s, verdict))
            if isinstance(verdict, Silent):
                liveness.forget(f"i-{verdict.node_id}")

    for now_s, until_s, name, how in sorted(events, key=lambda event: (event[0], event[2])):
        while liveness.wakes_at_s() <= now_s:
            look(liveness.wakes_at_s())
        calls += 1
        try:
            heard = liveness.hear_until(_beat(name, **how), now_s, until_s)
        except NotFound:  # it comes back
            liveness.watch(name, f"i-{name}", now_s, confirmed=True)
            liveness.carry(f"i-{name}", True)
            liveness.belong(f"i-{name}", "f1", now_s, leads=name == "a")
            heard = liveness.hear_until(_beat(name, **how), now_s, until_s)
        said += [(now_s, verdict) for verdict in heard]
    while liveness.wakes_at_s() < inf:
        look(liveness.wakes_at_s())
    return said, calls


@pytest.mark.parametrize("seed", range(20))
def test_a_run_of_beats_is_judged_as_its_beats_are(seed: int) -> None:
    one_by_one, many = _verdicts(seed, fold=False)
    folded, few = _verdicts(seed, fold=True)
    assert folded == one_by_one
    assert few * 3 < many


def test_the_folded_lives_have_every_verdict() -> None:
    kinds = {type(v) for seed in range(20) for _, v in _verdicts(seed, fold=True)[0]}
    assert kinds == {Silent, Stalled, Serves}


# Cost


@pytest.mark.parametrize("nodes", [10, 1000])
def test_looks_do_not_grow_with_the_number_of_nodes(nodes: int) -> None:
    """While all beat, whoever is asked when to look next is so a few times a second."""
    names = [f"n{number}" for number in range(nodes)]
    liveness = _watching(*names)
    looks, seconds = 0, 20
    for quarter in range(seconds * 4):
        for index, name in enumerate(names):
            now_s = INTERVAL_S * (quarter + index / nodes)
            while liveness.wakes_at_s() <= now_s:
                assert liveness.look(liveness.wakes_at_s()) == []
                looks += 1
            liveness.hear(_beat(name), now_s)
    assert looks <= 3 * seconds


def test_advice_is_told_once_however_often_it_is_beaten() -> None:
    liveness = _watching("a")
    advised = _beat("a", notice=NoticeKind.REBALANCE)
    assert liveness.hear(advised, 0.1) == [Advised("a")]
    assert liveness.hear(advised, 0.2) == []
    assert liveness.hear(_beat("a", notice=NoticeKind.SPOT), 0.3) == [], "no time, no notice"
