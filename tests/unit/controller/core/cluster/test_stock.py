"""What spares are to hold, against the memory that engines really reckon with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.generation import LayerRange, ModelRef
from services.common.nodes import MOST_STAGES, NodeShape, StageSpec
from services.controller.core.cluster.actions import Loaded
from services.controller.core.cluster.node import HeldStage, Node
from services.controller.core.cluster.stock import More, StageAtRisk, by_risk, restock
from services.engine.core.memory import Memory, StageSize, total_bytes
from tests.unit.controller.small_cluster import facts

MODEL, OTHER = ModelRef("m", "d"), ModelRef("o", "d")
LAYER_BYTES, BLOCK_BYTES = 10, 1
ROOMY = 10_000


def held(start: int, end: int, model: ModelRef = MODEL) -> HeldStage:
    return HeldStage(model, LayerRange(start, end), 1)


def size(stage: HeldStage) -> StageSize:
    layers = range(stage.layers.start, stage.layers.end)
    return StageSize(
        stage.model, StageSpec(stage.layers), dict.fromkeys(layers, LAYER_BYTES), BLOCK_BYTES
    )


def suits(node: Node, stage: HeldStage) -> bool:
    return size(stage).weight_bytes + BLOCK_BYTES <= node.shape.memory_bytes


@dataclass
class Spares:
    """Nodes without a place, and what they do as they are asked."""

    stages: list[StageAtRisk]
    nodes: list[Node] = field(default_factory=list)
    asks: list[More] = field(default_factory=list)

    def come(self, memory_bytes: int) -> Node:
        name = f"spare-{len(self.nodes)}"
        node = Node(name, NodeShape(memory_bytes, 1.0), 0.0)
        node.register(facts(name), 0.0)
        node.shape = NodeShape(memory_bytes, 1.0)
        self.nodes.append(node)
        return node

    def turn(self) -> int:
        """Everybody who may is asked for one stage more, and answers."""
        asks = restock(self.nodes, by_risk(self.stages), suits)
        for more in asks:
            if len(more.among) > 1:
                more.node.stock_up(more.stage, more.among)
            else:
                more.node.load(more.stage)
        for more in asks:
            self._answer(more)
        self.asks += asks
        return len(asks)

    def settle(self) -> None:
        """Until nothing is asked any more: a bound that would not be kept is a flapping."""
        asked, most = len(self.asks), len(self.nodes) * (2 * len(self.stages) + 2)
        while self.turn():
            assert len(self.asks) - asked <= most

    def _answer(self, more: More) -> None:
        node = more.node
        memory = Memory(node.shape.memory_bytes, 1)
        fitting = memory.fitting([size(stage) for stage in more.among], None)
        has = [stage for stage, fits in zip(more.among, fitting, strict=True) if fits]
        beside = tuple(stage.spec for stage in has if stage != more.stage)
        node.loaded(Loaded(1, "a", more.stage in has, beside))
        assert total_bytes(map(size, node.stages)) + BLOCK_BYTES <= node.shape.memory_bytes
        assert len(node.stages) <= MOST_STAGES

    def has(self) -> list[tuple[HeldStage, ...]]:
        return [node.stages for node in self.nodes]


FRONT, MIDDLE, BACK = held(0, 10), held(10, 16), held(16, 20)
THREE = [StageAtRisk(FRONT, 1.0), StageAtRisk(MIDDLE, 3.0), StageAtRisk(BACK, 2.0)]


def kept(stages: Sequence[StageAtRisk], *memories: int) -> list[tuple[HeldStage, ...]]:
    spares = Spares(list(stages))
    for memory in memories:
        spares.come(memory)
        spares.settle()
    return spares.has()


def test_one_holds_every_stage_that_fits_the_likeliest_first() -> None:
    assert kept(THREE, ROOMY) == [(MIDDLE, BACK, FRONT)]
    assert kept(THREE, 101) == [(MIDDLE, BACK)]
    assert kept(THREE, 61) == [(MIDDLE,)]


def test_what_is_too_large_for_one_is_left_out_and_what_is_smaller_is_not() -> None:
    assert kept(THREE, 50) == [(BACK,)]
    assert kept(THREE, 5) == [()]


def test_equals_are_held_where_nobody_has_them_and_those_first_that_take_longest_to_load() -> None:
    equal = [replace(one, hazard=1.0) for one in THREE]
    assert kept(equal, 101, 101) == [(FRONT,), (MIDDLE, BACK)]


def test_those_that_come_later_complement_those_that_are_there() -> None:
    assert kept(THREE, 61, 101) == [(MIDDLE,), (BACK, MIDDLE)]
    assert kept(THREE, 101, 101) == [(MIDDLE, BACK), (FRONT,)]
    assert kept(THREE, 101, ROOMY) == [(MIDDLE, BACK), (FRONT, MIDDLE, BACK)]


def test_layers_that_stages_share_are_held_once() -> None:
    overlap = [StageAtRisk(held(0, 10)), StageAtRisk(held(10, 20)), StageAtRisk(held(5, 15))]
    assert len(kept(overlap, 20 * LAYER_BYTES + BLOCK_BYTES)[0]) == 3


def test_one_holds_stages_of_one_model_and_the_next_those_of_the_other() -> None:
    stages = [*THREE, StageAtRisk(held(0, 4, OTHER), 2.5), StageAtRisk(held(4, 8, OTHER), 0.1)]
    assert kept(stages, ROOMY, ROOMY) == [
        (MIDDLE, BACK, FRONT),
        (held(0, 4, OTHER), held(4, 8, OTHER)),
    ]


def test_more_than_a_node_may_be_asked_for_is_not_asked_for() -> None:
    many = [StageAtRisk(held(n, n + 1), float(n)) for n in range(MOST_STAGES + 3)]
    first, second = kept(many, ROOMY, ROOMY)
    assert first == tuple(held(n, n + 1) for n in range(MOST_STAGES + 2, 2, -1))
    assert second[:3] == (held(2, 3), held(1, 2), held(0, 1))
    assert len(second) == MOST_STAGES


def test_what_has_become_likelier_takes_memory_from_the_less_likely_and_back_at_no_flicker() -> (
    None
):
    spares = Spares(list(THREE))
    spares.come(101)
    spares.settle()
    spares.stages[0] = replace(spares.stages[0], hazard=9.0)
    spares.settle()
    assert spares.has() == [(FRONT,)]
    asked = len(spares.asks)
    spares.stages[0] = replace(spares.stages[0], hazard=3.0)  # as likely as the one it took from
    spares.settle()
    assert (spares.has(), len(spares.asks)) == ([(FRONT,)], asked)


def test_a_stage_that_the_plan_has_no_more_makes_room_for_what_there_was_none() -> None:
    spares = Spares(list(THREE))
    spares.come(101)
    spares.settle()
    del spares.stages[1]
    spares.settle()
    assert spares.has() == [(BACK,)], "the front has no room beside it"
    del spares.stages[1]
    spares.settle()
    assert spares.has() == [(FRONT,)]


stages_at_risk = st.lists(
    st.builds(
        lambda start, count, hazard, spot, nodes, other: StageAtRisk(
            held(start, start + count, OTHER if other else MODEL), hazard, spot, nodes
        ),
        st.integers(0, 20),
        st.integers(1, 8),
        st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        st.integers(0, 2),
        st.integers(1, 2),
        st.booleans(),
    ),
    min_size=1,
    max_size=10,
    unique_by=lambda one: one.stage,
)
memories = st.lists(st.integers(1, 200), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(stages_at_risk, memories, st.data())
def test_any_change_settles_within_a_bound_and_never_beyond_memory(
    stages: list[StageAtRisk], sizes: list[int], data: st.DataObject
) -> None:
    spares = Spares(stages)
    for memory in sizes:
        spares.come(memory)
        spares.settle()
    for _ in range(data.draw(st.integers(0, 5))):
        changes: list[Callable[[], object]] = [
            lambda: spares.stages.__setitem__(
                data.draw(st.integers(0, len(spares.stages) - 1)), data.draw(stages_at_risk)[0]
            ),
            lambda: spares.nodes.pop(data.draw(st.integers(0, len(spares.nodes) - 1))),
            lambda: spares.come(data.draw(st.integers(1, 200))),
        ]
        data.draw(st.sampled_from(changes[:1] if not spares.nodes else changes))()
        spares.stages = list({one.stage: one for one in spares.stages}.values())
        spares.settle()


@settings(max_examples=100, deadline=None)
@given(stages_at_risk, memories, st.randoms())
def test_the_order_in_which_stages_are_told_changes_nothing(
    stages: list[StageAtRisk], sizes: list[int], random: object
) -> None:
    shuffled = list(stages)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert kept(stages, *sizes) == kept(shuffled, *sizes)


@settings(max_examples=150, deadline=None)
@given(stages_at_risk, st.integers(1, 200), st.data())
def test_what_is_held_and_wanted_is_dropped_for_the_likelier_alone(
    stages: list[StageAtRisk], memory: int, data: st.DataObject
) -> None:
    spares = Spares(stages)
    node = spares.come(memory)
    spares.settle()
    before, asked = node.stages, len(spares.asks)
    hazards = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(stages)))
    spares.stages = [replace(o, hazard=h) for o, h in zip(stages, hazards, strict=False)]
    spares.settle()
    ranks = {one.stage: one.rank for one in spares.stages}
    # Also for one that then has no room: whether it has is the node's to find.
    tried = [ranks[more.stage] for more in spares.asks[asked:] if more.stage not in before]
    for dropped in set(before) - set(node.stages):
        assert any(rank < ranks[dropped] for rank in tried)


@settings(max_examples=100, deadline=None)
@given(stages_at_risk, memories, st.integers(1, 200))
def test_who_comes_changes_nothing_of_what_others_hold(
    stages: list[StageAtRisk], sizes: list[int], memory: int
) -> None:
    before = kept(stages, *sizes)
    assert kept(stages, *sizes, memory)[:-1] == before
