from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.common.exchange import Route
from services.common.generation import ModelRef
from services.router.core.balancer import Balancer


def route(name: str, throughput: float, model: str = "m") -> Route:
    return Route(name, f"f-{name}", "i", "h:1", throughput, ModelRef(model, "d"), 100)


def test_shares_follow_throughput_when_load_is_even() -> None:
    balancer = Balancer()
    balancer.update([route("a", 3.0), route("b", 1.0)])
    picked = Counter()
    for _ in range(40):
        chosen = balancer.pick("m")
        assert chosen is not None
        picked[chosen.pipeline_id] += 1
    assert picked == {"a": 30, "b": 10}


def test_turns_are_spread_not_bunched() -> None:
    balancer = Balancer()
    balancer.update([route("a", 2.0), route("b", 1.0)])
    order = "".join(balancer.pick("m").pipeline_id for _ in range(6))  # type: ignore[union-attr]
    assert "aaa" not in order
    assert "bb" not in order


def test_what_runs_long_gets_fewer_new_ones() -> None:
    balancer = Balancer()
    balancer.update([route("a", 1.0), route("b", 1.0)])
    for _ in range(8):
        balancer.began("f-a")
    picked = Counter(balancer.pick("m").pipeline_id for _ in range(20))  # type: ignore[union-attr]
    assert picked["b"] > 2 * picked["a"]
    for _ in range(9):
        balancer.ended("f-a")
    picked = Counter(balancer.pick("m").pipeline_id for _ in range(20))  # type: ignore[union-attr]
    assert abs(picked["a"] - picked["b"]) <= 2


@given(
    throughputs=st.lists(st.floats(0.1, 100.0), min_size=1, max_size=5),
    before=st.lists(st.integers(0, 4), max_size=30),
    burst=st.integers(1, 30),
)
def test_a_burst_is_shared_out_whatever_came_before(
    throughputs: list[float], before: list[int], burst: int
) -> None:
    names = [str(n) for n in range(len(throughputs))]
    balancer = Balancer()
    balancer.update([route(n, t) for n, t in zip(names, throughputs, strict=True)])
    elsewhere = [f"f-{names[n % len(names)]}" for n in before]
    for formation_id in elsewhere:
        balancer.began(formation_id)
        balancer.pick("m")
    for formation_id in elsewhere:
        balancer.ended(formation_id)
    running: Counter[str] = Counter()
    for count in range(1, burst + 1):
        chosen = balancer.pick("m")
        assert chosen is not None
        balancer.began(chosen.formation_id)
        running[chosen.pipeline_id] += 1
        share = chosen.throughput_tokens_per_s / sum(throughputs)
        assert running[chosen.pipeline_id] < share * count + 1 + 1e-9


def test_only_pipelines_of_the_model_are_picked() -> None:
    balancer = Balancer()
    assert balancer.pick("m") is None
    balancer.update([route("a", 1.0, "other"), route("b", 0.0)])
    assert balancer.pick("m").pipeline_id == "b"  # type: ignore[union-attr]
    assert {r.model.model_id for r in balancer.models()} == {"m", "other"}


def test_a_head_serves_while_it_is_listed_or_hands_over_or_nothing_is_known() -> None:
    balancer = Balancer()
    assert balancer.serves("f-a")
    balancer.update([route("a", 1.0)], handing_over=["f-b"])
    assert balancer.serves("f-a")
    assert balancer.serves("f-b")
    assert not balancer.serves("f-c")
    balancer.update([])
    assert not balancer.serves("f-a")


def loaded(**running: int) -> Balancer:
    balancer = Balancer()
    balancer.update([route(name, 1.0) for name in running])
    for name, count in running.items():
        for _ in range(count):
            balancer.began(f"f-{name}")
    return balancer


def picked(balancer: Balancer, found: dict[str, int]) -> str:
    chosen = balancer.pick("m", found)
    assert chosen is not None
    return chosen.pipeline_id


def test_whoever_has_the_beginning_is_preferred_whosever_turn_it_is() -> None:
    balancer = loaded(a=0, b=0)
    assert {picked(balancer, {"f-a": 160}) for _ in range(6)} == {"a"}
    assert {picked(balancer, {}) for _ in range(2)} == {"a", "b"}, "no turn was used up"


def test_a_beginning_that_all_prompts_have_moves_nobody() -> None:
    balancer = loaded(a=0, b=0)
    assert [picked(balancer, {"f-a": 112}) for _ in range(4)].count("a") == 2


def test_who_has_more_of_it_is_preferred() -> None:
    assert picked(loaded(a=0, b=0, c=0), {"f-a": 160, "f-b": 320}) == "b"


def test_those_who_have_as_much_take_turns() -> None:
    balancer = loaded(a=0, b=0, c=0)
    order = [picked(balancer, {"f-a": 160, "f-c": 160}) for _ in range(6)]
    assert sorted(order) == ["a"] * 3 + ["c"] * 3


def test_a_place_above_the_share_is_taken_for_what_it_saves() -> None:
    assert picked(loaded(a=1, b=0), {"f-a": 700}) == "a"
    assert picked(loaded(a=1, b=0), {"f-a": 600}) == "b", "88 positions are not worth it"
    assert picked(loaded(a=1, b=0), {"f-a": 10_000, "f-b": 9_600}) == "b"


@given(
    throughputs=st.lists(st.floats(0.1, 100.0), min_size=1, max_size=5),
    events=st.lists(st.tuples(st.integers(-3, 4), st.integers(0, 1 << 20)), max_size=60),
)
def test_nobody_is_overrun_however_much_it_has_computed(
    throughputs: list[float], events: list[tuple[int, int]]
) -> None:
    balancer = Balancer()
    balancer.update([route(str(n), t) for n, t in enumerate(throughputs)])
    running: Counter[str] = Counter()
    for holder, saved in events:
        if holder < 0 and running:
            ended = sorted(running.elements())[holder % running.total()]
            running -= Counter([ended])
            balancer.ended(ended)
            continue
        chosen = balancer.pick("m", {f"f-{holder}": saved, "f-gone": saved})
        assert chosen is not None
        balancer.began(chosen.formation_id)
        running[chosen.formation_id] += 1
        fair = chosen.throughput_tokens_per_s / sum(throughputs) * running.total()
        assert running[chosen.formation_id] < fair + max(1.0, fair / 4) + 1 + 1e-9
