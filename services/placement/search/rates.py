"""Rates of every way to run a stage, tabulated over batches, for searches over many pipelines.

With M = p microbatches the slowest stage decides: p x max >= sum. So a batch takes
p x (X + out x Y), X the slowest stage's prefill and Y its decode step of B/p sequences, and the
pipeline's rate is (B/p) / (X + out x Y). Times of a stage are linear in its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.common.phases import PipelinePhase
from services.placement.estimate.cluster import NodeClass
from services.placement.estimate.costs import Costs, StageCost
from services.placement.estimate.model import ELEMENT_BYTES
from services.placement.estimate.roofline import Array
from services.placement.search.budget import UNLIMITED, SearchBudget, check_time

Ints = npt.NDArray[np.int64]
DENSE_BATCHES = 512
SPARSE_BATCHES = 256


@dataclass(frozen=True)
class Option:
    """One way to run a stage: a class of the inventory at a TP degree."""

    kind: int
    tp: int
    cost: StageCost


def options(
    costs: Costs, kinds: Sequence[NodeClass], tp: int = 0, budget: SearchBudget = UNLIMITED
) -> list[Option]:
    """Every way to run a stage on these classes that another does not dominate.

    `tp` restricts them to one degree. Dominated: no better time at any batch and no more room.
    Raises DeadlineExceeded when the budget is over.
    """
    found = []
    for index, kind in enumerate(kinds):
        check_time(budget)
        degrees = [n for n in costs.degrees(kind) if tp in (0, n)]
        made = [Option(index, n, costs.of(kind, n)) for n in degrees]
        made = [option for option in made if option.cost.free_bytes(1, False, False) > 0]
        signs = [_signature(option.cost) for option in made]
        for i, option in enumerate(made):
            beaten = any(
                bool(np.all(signs[j] <= signs[i])) and (j < i or bool(np.any(signs[j] < signs[i])))
                for j in range(len(made))
                if j != i
            )
            if not beaten:
                found.append(option)
    return found


def _signature(cost: StageCost) -> Array:
    """Times and lack of room on a grid: less is better everywhere."""
    b = np.geomspace(0.25, max(1.0, float(cost.max_sequences)), 24)
    n = np.arange(1, cost.model.layers + 1)
    kv = cost.kv_bytes_per_sequence(1)
    rooms = []
    for first, last in ((False, False), (True, False), (False, True), (True, True)):
        vocab, layer = cost.weight_bytes(0, first, last), cost.weight_bytes(1, False, False)
        rooms.append(-np.maximum(0.0, (cost.budget_bytes - vocab - layer * n) / (kv * n)))
    return np.concatenate([cost.prefill_layer_s(b), cost.decode_layer_s(b), cost.head_s(b), *rooms])


@dataclass(frozen=True)
class RateTable:
    """Pipelines of `stages` stages: seconds by option and batch, b = max(1, B/stages).

    Arrays are [options, batches] unless said otherwise.
    """

    stages: int
    batches: Ints  # [J]
    microbatch: Array  # [J]
    prefill: Array
    decode: Array
    head: Array
    embedding_prefill: Array
    embedding_decode: Array
    most: dict[tuple[bool, bool], Ints]  # by (first, last): most layers that leave room
    network: Array  # [options], bytes/s
    hop_prefill_bytes: Array  # [J]
    hop_decode_bytes: Array  # [J]
    hop_latency_s: float  # a step's overhead among it
    layers: int
    weights: tuple[float, float]  # what a second of X and of Y count: 1 and out, or 0


class RateTables:
    """The tables of all pipeline lengths up to `longest`, computed together."""

    def __init__(
        self,
        costs: Costs,
        chosen: Sequence[Option],
        longest: int,
        phase: PipelinePhase = PipelinePhase.BOTH,
        budget: SearchBudget = UNLIMITED,
    ) -> None:
        """Raises DeadlineExceeded when the budget is over."""
        self.options, self.longest = tuple(chosen), longest
        self._costs, self._phase = costs, phase
        self.batches = _batches(costs.calibration.max_sequences)
        lengths = np.arange(1, longest + 1)
        b = np.maximum(1.0, self.batches / lengths[:, None])  # [P, J]
        self._b = b
        shape = (len(chosen), *b.shape)
        self._prefill, self._decode, self._head = (np.empty(shape) for _ in range(3))
        self._embedding, self._embedding_one = np.empty(shape), np.empty(shape)
        for i, option in enumerate(chosen):
            check_time(budget)
            cost = option.cost
            self._prefill[i] = cost.prefill_layer_s(b)
            self._decode[i] = cost.decode_layer_s(b)
            self._head[i] = cost.head_s(b) + cost.step_overhead_s
            self._embedding[i] = cost.embedding_s(b, True)
            self._embedding_one[i] = cost.embedding_s(b, False)
        self._most = {
            (first, last): np.stack([self._most_layers(o.cost, first, last) for o in chosen])
            for first in (False, True)
            for last in (False, True)
        }
        self._made: dict[int, RateTable] = {}

    def _most_layers(self, cost: StageCost, first: bool, last: bool) -> Ints:
        kv = cost.kv_bytes_per_sequence(1, self._phase)
        layer = cost.weight_bytes(1, False, False)
        free = cost.budget_bytes - cost.weight_bytes(0, first, last)
        room = np.floor(free / (layer + kv * self.batches) * (1 + 1e-12))
        most: Ints = np.clip(room, 0, self._costs.model.layers).astype(np.int64)
        return most

    def of(self, stages: int) -> RateTable:
        """The table of pipelines of that many stages."""
        if stages not in self._made:
            i, b = stages - 1, self._b[stages - 1]
            width = ELEMENT_BYTES * self._costs.model.hidden
            out = float(self._costs.workload.output_tokens)
            self._made[stages] = RateTable(
                stages=stages,
                batches=self.batches,
                microbatch=b,
                prefill=self._prefill[:, i],
                decode=self._decode[:, i],
                head=self._head[:, i],
                embedding_prefill=self._embedding[:, i],
                embedding_decode=self._embedding_one[:, i],
                most=self._most,
                network=np.array([o.cost.network_bytes_per_s for o in self.options]),
                hop_prefill_bytes=b * self._costs.workload.input_tokens * width,
                hop_decode_bytes=b * width,
                hop_latency_s=self._costs.engine.step_overhead_s
                + self.options[0].cost.hop_latency_s,
                layers=self._costs.model.layers,
                weights=(
                    0.0 if self._phase is PipelinePhase.DECODE else 1.0,
                    0.0 if self._phase is PipelinePhase.PREFILL else out,
                ),
            )
        return self._made[stages]


def _batches(most: int) -> Ints:
    """Every batch up to 512, then a geometric grid."""
    dense = np.arange(1, min(most, DENSE_BATCHES) + 1)
    if most <= DENSE_BATCHES:
        return dense
    sparse = np.unique(np.geomspace(DENSE_BATCHES, most, SPARSE_BATCHES).astype(np.int64))
    grid: Ints = np.unique(np.concatenate([dense, sparse]))
    return grid
