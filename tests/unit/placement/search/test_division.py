from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from services.common.errors import DeadlineExceeded, FailedPrecondition
from services.placement.estimate.catalogue import load_catalogue
from services.placement.estimate.cluster import (
    CandidateNode,
    PlacedPipeline,
    PlacedStage,
    Workload,
    described,
)
from services.placement.estimate.estimator import estimate_plan
from services.placement.search import division
from services.placement.search.budget import UNLIMITED, SearchBudget
from services.placement.search.division import divide
from services.placement.search.problem import (
    Objective,
    ObjectiveKind,
    Planner,
    Problem,
    Solution,
)
from services.placement.search.registry import planner
from services.placement.search.score import score, violation
from services.placement.search.shares import Share
from tests.unit.placement.conftest import MakeCosts

PLANNER = planner("proportional")


def nodes(*speeds: float, memory_gib: int = 24) -> tuple[CandidateNode, ...]:
    """L4s of different speed."""
    catalogue = load_catalogue()
    return tuple(
        CandidateNode(
            f"n{index}",
            described(
                catalogue, device_type="l4", relative_speed=speed, memory_bytes=memory_gib << 30
            ),
        )
        for index, speed in enumerate(speeds, 1)
    )


@pytest.fixture
def share(make_costs: MakeCosts):  # type: ignore[no-untyped-def]
    def make(name: str, model: str = "llama-3.1-8b", **more) -> Share:  # type: ignore[no-untyped-def]
        workload = more.pop("workload", None)
        costs = make_costs(model, workload=workload)
        return Share(name, costs, PLANNER, more.pop("objective", Objective()), **more)

    return make


def parts(found: division.Division) -> list[set[str]]:
    return [{node.node_id for node in problem.nodes} for problem in found.problems]


def welfare(found: Sequence[float], shares: Sequence[Share]) -> float:
    """The weighted geometric mean of the scores."""
    logs = (one.weight * math.log(value) for one, value in zip(shares, found, strict=True))
    return math.exp(sum(logs) / sum(one.weight for one in shares))


def of(found: division.Division, shares: Sequence[Share]) -> float:
    pairs = zip(found.problems, found.solutions, strict=True)
    return welfare([score(p, s.pipelines) for p, s in pairs], shares)


def every(cluster: Sequence[CandidateNode], shares: Sequence[Share]) -> Iterator[float]:
    """What each way to give nodes to shares comes to, whoever is equal."""
    known: dict[tuple[int, frozenset[str]], float] = {}

    def value(index: int, group: tuple[CandidateNode, ...]) -> float:
        key = index, frozenset(node.node_id for node in group)
        if key not in known:
            known[key] = 0.0
            problem = Problem(shares[index].costs, group, shares[index].objective)
            with contextlib.suppress(FailedPrecondition):
                known[key] = score(problem, PLANNER(problem, UNLIMITED).pipelines)
        return known[key]

    for owners in itertools.product(range(len(shares)), repeat=len(cluster)):
        groups = [
            tuple(n for n, owner in zip(cluster, owners, strict=True) if owner == i)
            for i in range(len(shares))
        ]
        if all(groups):
            values = [value(i, group) for i, group in enumerate(groups)]
            if all(values):
                yield welfare(values, shares)


@pytest.mark.parametrize("speeds", [(1.0, 2.0, 3.0, 1.0), (1.0, 1.0, 1.0, 1.0, 4.0), (3.0, 2.0)])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0)])
def test_a_small_cluster_is_divided_as_well_as_any_way(
    share, speeds: tuple[float, ...], weights: tuple[float, ...]
) -> None:  # type: ignore[no-untyped-def]
    cluster = nodes(*speeds)
    shares = [share("a", weight=weights[0]), share("b", "smollm2-135m", weight=weights[1])]
    best = max(every(cluster, shares))
    found = divide(cluster, shares, UNLIMITED)
    assert found.complete
    assert of(found, shares) >= best * (1 - division.A_LITTLE)


def test_a_hill_that_is_climbed_is_nearly_as_high(share, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(division, "ALL_OF", 0)
    ratios = []
    for speeds in ((1.0, 2.0, 3.0, 1.0, 2.0), (5.0, 1.0, 1.0, 1.0, 1.0), (1.0, 2.0, 4.0, 8.0, 1.0)):
        cluster, shares = nodes(*speeds), [share("a"), share("b"), share("c")]
        ratios.append(of(divide(cluster, shares, UNLIMITED), shares) / max(every(cluster, shares)))
    assert min(ratios) >= 0.95, ratios


def test_every_model_has_a_pipeline_whenever_that_is_possible(share) -> None:  # type: ignore[no-untyped-def]
    cluster = nodes(1.0, 1.0, 1.0)
    shares = [share("a", weight=1000.0), share("b", weight=0.001), share("c")]
    assert [len(part) for part in parts(divide(cluster, shares, UNLIMITED))] == [1, 1, 1]


def test_who_does_not_fit_is_named_with_what_is_missing(share) -> None:  # type: ignore[no-untyped-def]
    cluster = nodes(1.0, 1.0, memory_gib=20)
    with pytest.raises(FailedPrecondition, match=r"^big: .* does not fit: [0-9.]+ GiB short"):
        divide(cluster, [share("a"), share("big", "llama-3.1-70b")], UNLIMITED)
    crowd = [share("a"), share("b"), share("c")]
    with pytest.raises(
        FailedPrecondition, match=r"does not fit beside .*: [0-9.]+ GiB short on 2 nodes"
    ):
        divide(cluster, crowd, UNLIMITED)


def test_what_runs_stays_where_it_is_as_good(share) -> None:  # type: ignore[no-untyped-def]
    cluster = nodes(1.0, 1.0, 1.0, 1.0)
    alone = share("a", pipeline_count=2)
    problem = Problem(alone.costs, cluster, pipeline_count=2)
    running = PLANNER(problem, UNLIMITED).pipelines
    shares = [replace(alone, running=running), share("b", pipeline_count=2)]
    found = divide(cluster, shares, UNLIMITED)
    (kept,) = found.solutions[0].pipelines
    assert kept in running
    again = divide(
        cluster,
        [
            replace(shares[0], running=(kept,)),
            replace(shares[1], running=found.solutions[1].pipelines),
        ],
        UNLIMITED,
    )
    assert parts(again) == parts(found)
    assert [s.pipelines for s in again.solutions] == [s.pipelines for s in found.solutions]


def test_of_divisions_that_serve_as_many_the_one_that_is_less_late_is_made(share) -> None:  # type: ignore[no-untyped-def]
    """By their product alone the first model would have the second's node."""

    def late_on_one_node(problem: Problem, budget: SearchBudget) -> Solution:
        late = "TTFT" if len(problem.nodes) == 1 else ""
        return replace(PLANNER(problem, budget), late=late)

    cluster = nodes(1.0, 1.0, 1.0)
    shares = [share("a", weight=9.0), share("b")]
    assert [len(part) for part in parts(divide(cluster, shares, UNLIMITED))] == [2, 1]
    timed = [shares[0], replace(shares[1], planner=late_on_one_node)]
    found = divide(cluster, timed, UNLIMITED)
    assert [len(part) for part in parts(found)] == [1, 2]
    assert [one.late for one in found.solutions] == ["", ""]
    two = divide(cluster[:2], timed, UNLIMITED)
    assert [one.late for one in two.solutions] == ["", "TTFT"], "late is better than never"


def test_what_runs_does_not_stay_where_it_is_late_and_another_plan_is_not(share) -> None:  # type: ignore[no-untyped-def]
    workload = Workload(arrival_rate_rps=0.01)
    objective = Objective(tpot_target_s=0.2)
    alone = share("a", workload=workload, objective=objective)
    cluster = nodes(1.0, 1.0)
    fast = PlacedPipeline((PlacedStage(cluster[0], 0, 32, 1),))
    slow = PlacedPipeline((PlacedStage(cluster[0], 0, 16, 1), PlacedStage(cluster[1], 16, 32, 1)))
    problem = Problem(alone.costs, cluster, objective)
    tpot_s = [estimate_plan(problem.costs, [one])[0].load.tpot_s for one in (fast, slow)]
    assert tpot_s[0] < tpot_s[1], "two hops"
    objective = Objective(tpot_target_s=sum(tpot_s) / 2)

    def planned(asked: Problem, budget: SearchBudget) -> Solution:
        return Solution((fast,), late=violation(asked, (fast,))[0])

    for limit_s, stays in ((sum(tpot_s) / 2, False), (tpot_s[0] / 2, True), (0.0, True)):
        wanted = replace(alone, objective=Objective(tpot_target_s=limit_s), planner=planned)
        wanted = replace(wanted, running=(slow,))
        (solution,) = divide(cluster, [wanted], UNLIMITED).solutions
        good = score(problem, (slow,)) >= score(problem, (fast,)) * (1 - division.A_LITTLE)
        assert good, "else it would not stay for that"
        assert solution.pipelines == ((slow,) if stays else (fast,))
        assert bool(solution.late) == (0 < limit_s < tpot_s[0])


def test_the_same_question_has_the_same_answer(share) -> None:  # type: ignore[no-untyped-def]
    cluster, shares = nodes(*(1.0, 2.0) * 4, 3.0), [share("a"), share("b"), share("c")]
    first, second = (divide(cluster, shares, UNLIMITED) for _ in range(2))
    assert [s.pipelines for s in first.solutions] == [s.pipelines for s in second.solutions]
    assert sum(map(len, parts(first))) == len(set().union(*parts(first)))


def test_who_has_few_arrivals_leaves_nodes_to_the_others(share) -> None:  # type: ignore[no-untyped-def]
    cluster = nodes(*(1.0,) * 6)
    idle = Workload(arrival_rate_rps=0.001)
    shares = [share("idle", workload=idle), share("busy")]
    few, many = parts(divide(cluster, shares, UNLIMITED))
    assert (len(few), len(many)) == (1, 5)


def test_where_nothing_has_a_price_cost_counts_for_nothing(share) -> None:  # type: ignore[no-untyped-def]
    costly = Objective(ObjectiveKind.THROUGHPUT_PER_COST)
    search = planner("shuntserve")
    shares = [share("a"), replace(share("b", objective=costly), planner=search)]
    assert all(parts(divide(nodes(1.0, 1.0, 1.0, 1.0), shares, UNLIMITED)))


def test_a_search_is_bounded(share, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(division, "ALL_OF", 0)
    monkeypatch.setattr(division, "MOST_PLANS", 40)
    calls: list[int] = []

    def counted(problem: Problem, budget: division.SearchBudget) -> division.Solution:
        calls.append(1)
        return PLANNER(problem, budget)

    cluster = nodes(*(1.0, 2.0, 3.0, 4.0) * 4)
    shares = [replace(share(name), planner=counted) for name in "abcd"]
    found = divide(cluster, shares, UNLIMITED)
    assert not found.complete
    assert len(calls) <= 40 + 2 * len(shares)


def test_without_time_there_is_no_answer(share) -> None:  # type: ignore[no-untyped-def]
    class Over:
        def expired(self) -> bool:
            return True

        def remaining_s(self) -> float:
            return 0.0

    cluster = nodes(*(1.0,) * 2, memory_gib=20)
    with pytest.raises(DeadlineExceeded):
        divide(cluster, [share("a"), share("b"), share("c")], Over())


class Clock:
    """Time that passes only when somebody takes it."""

    def __init__(self, limit_s: float) -> None:
        self.left_s = limit_s

    def expired(self) -> bool:
        return self.left_s <= 0

    def remaining_s(self) -> float:
        return max(0.0, self.left_s)


def slow(clock: Clock) -> Planner:
    """Takes all the time that it is given, and at least a second."""

    def planned(problem: Problem, budget: SearchBudget) -> Solution:
        remaining_s = budget.remaining_s()
        clock.left_s -= max(1.0, remaining_s)
        if remaining_s < 1.0:
            raise DeadlineExceeded("time ran out before a plan was found")
        return replace(PLANNER(problem, UNLIMITED), complete=False)

    return planned


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_every_model_is_planned_for_when_planners_take_all_the_time_they_are_given(
    share, count: int
) -> None:  # type: ignore[no-untyped-def]
    clock = Clock(4.0 * count)
    shares = [replace(share(f"m{n}"), planner=slow(clock)) for n in range(count)]
    found = divide(nodes(*(1.0,) * count), shares, clock)
    assert all(solution.pipelines for solution in found.solutions)
    assert not found.complete


def test_a_part_that_nobody_could_plan_in_its_time_is_not_one_that_does_not_fit(share) -> None:  # type: ignore[no-untyped-def]
    clock = Clock(0.5)
    shares = [replace(share(name), planner=slow(clock)) for name in "ab"]
    with pytest.raises(DeadlineExceeded):
        divide(nodes(1.0, 1.0), shares, clock)
    clock = Clock(1000.0)

    def out_of_time(problem: Problem, budget: SearchBudget) -> Solution:
        raise DeadlineExceeded("time ran out before a plan was found")

    with pytest.raises(DeadlineExceeded):
        divide(nodes(1.0, 1.0), [share("a"), replace(share("b"), planner=out_of_time)], clock)
    assert not clock.expired()


def test_who_fits_nowhere_is_told_so_though_another_ran_out_of_time(share) -> None:  # type: ignore[no-untyped-def]
    def out_of_time(problem: Problem, budget: SearchBudget) -> Solution:
        raise DeadlineExceeded("time ran out before a plan was found")

    shares = [replace(share("a"), planner=out_of_time), share("big", "llama-3.1-70b")]
    with pytest.raises(FailedPrecondition, match=r"^big: .* does not fit: [0-9.]+ GiB short"):
        divide(nodes(1.0, 1.0, memory_gib=20), shares, UNLIMITED)


def test_who_is_served_by_nothing_that_was_looked_at_may_be_by_something_else(
    share, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(division, "MOST_PLANS", 1)
    crowd = [share("a"), share("b"), share("c")]
    with pytest.raises(
        FailedPrecondition, match=r"is not served beside .*, as far as \d+ parts tell"
    ):
        divide(nodes(1.0, 1.0, memory_gib=20), crowd, UNLIMITED)


def test_a_search_of_which_one_part_was_cut_short_did_not_end_by_itself(share) -> None:  # type: ignore[no-untyped-def]
    """Though what it found was planned to the end: the other part might have been better."""

    def planned(problem: Problem, budget: SearchBudget) -> Solution:
        return replace(PLANNER(problem, budget), complete=len(problem.nodes) == 1)

    shares = [replace(share(name), planner=planned) for name in "ab"]
    found = divide(nodes(1.0, 1.0), shares, UNLIMITED)
    assert all(solution.complete for solution in found.solutions)
    assert not found.complete


def test_what_was_found_is_not_planned_again(share) -> None:  # type: ignore[no-untyped-def]
    asked: list[tuple[str, tuple[str, ...]]] = []

    def named(name: str) -> Planner:
        def planned(problem: Problem, budget: SearchBudget) -> Solution:
            asked.append((name, tuple(node.node_id for node in problem.nodes)))
            return PLANNER(problem, budget)

        return planned

    shares = [replace(share(name), planner=named(name)) for name in "ab"]
    found = divide(nodes(1.0, 2.0, 1.0, 2.0), shares, UNLIMITED)
    assert len(asked) == len(set(asked))
    for problem, solution in zip(found.problems, found.solutions, strict=True):
        there = {node.node_id for node in problem.nodes}
        assert all(there.issuperset(pipeline.node_ids) for pipeline in solution.pipelines)


def test_no_pipeline_is_in_two_parts(share) -> None:  # type: ignore[no-untyped-def]
    found = divide(nodes(1.0, 2.0, 1.0, 2.0), [share("a"), share("b")], UNLIMITED)
    placed: list[PlacedPipeline] = [p for s in found.solutions for p in s.pipelines]
    named = [name for pipeline in placed for name in pipeline.node_ids]
    assert len(named) == len(set(named))
