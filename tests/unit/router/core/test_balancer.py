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
