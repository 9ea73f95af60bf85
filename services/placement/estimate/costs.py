"""What a stage costs for one model and workload: time by layer, room for sequences, its hop."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from services.common.phases import PipelinePhase
from services.placement.estimate.calibration import Calibration
from services.placement.estimate.catalogue import HardwareCatalogue
from services.placement.estimate.cluster import NodeClass, Workload
from services.placement.estimate.engine import EngineProfile
from services.placement.estimate.model import ELEMENT_BYTES, ModelShape
from services.placement.estimate.roofline import Array, Device, Number, device, total_s

_NO_ENGINE = EngineProfile()


@dataclass(frozen=True)
class StageCost:
    """A node class at a TP degree. Times in seconds for `b` sequences in a microbatch."""

    kind: NodeClass
    device: Device
    workload: Workload
    budget_bytes: float  # a device, after utilisation and reserve
    max_sequences: int
    network_bytes_per_s: float
    hop_latency_s: float
    decode_scale: float = 1.0  # what the engine takes of the device's time of layers
    prefill_scale: float = 1.0
    step_overhead_s: float = 0.0  # of each step, beside

    @property
    def model(self) -> ModelShape:
        return self.device.model

    @property
    def tp(self) -> int:
        return self.device.tp

    @property
    def context(self) -> float:
        """Mean positions behind a decoded token."""
        return self.workload.input_tokens + self.workload.output_tokens / 2

    def prefill_layer_s(self, b: Number) -> Array:
        return self.prefill_scale * total_s(self.device.prefill(b, self.workload.input_tokens))

    def decode_layer_s(self, b: Number) -> Array:
        return self.decode_scale * total_s(self.device.decode(b, self.context))

    def embedding_s(self, b: Number, prefill: bool) -> Array:
        tokens = np.asarray(b, dtype=float) * (self.workload.input_tokens if prefill else 1)
        return np.asarray(self.device.embedding(tokens).time_s)

    def head_s(self, b: Number) -> Array:
        return np.asarray(self.device.lm_head(np.asarray(b, dtype=float)).time_s)

    def hop_s(self, b: Number, prefill: bool, next_bytes_per_s: float) -> Array:
        """Hands a microbatch's activations to a node with that rate."""
        tokens = np.asarray(b, dtype=float) * (self.workload.input_tokens if prefill else 1)
        size = ELEMENT_BYTES * tokens * self.model.hidden
        return size / min(self.network_bytes_per_s, next_bytes_per_s) + self.hop_latency_s

    def weight_bytes(self, layers: int, first: bool, last: bool) -> float:
        """Weights a device holds."""
        whole = layers * self.model.layer_bytes
        vocab = int(first) + int(last) - int(first and last and self.model.tied)
        return (whole + vocab * self.model.vocab_bytes) / self.tp

    def kv_bytes_per_sequence(
        self, layers: int, phase: PipelinePhase = PipelinePhase.BOTH
    ) -> float:
        """KV cache a device needs for one sequence at its full length. Engines keep every position,
        also those that a sliding window no longer sees."""
        tokens = self.workload.total_tokens
        if phase is PipelinePhase.PREFILL:
            tokens = self.workload.input_tokens
        per_rank = self.model.kv_heads_per_rank(self.tp) * 2 * self.model.head_dim * ELEMENT_BYTES
        return tokens * per_rank * layers

    def free_bytes(self, layers: int, first: bool, last: bool) -> float:
        """Left for KV cache on a device; negative when the weights do not fit."""
        return self.budget_bytes - self.weight_bytes(layers, first, last)

    def capacity(
        self, layers: int, first: bool, last: bool, phase: PipelinePhase = PipelinePhase.BOTH
    ) -> int:
        """Sequences the stage has room for, at most `max_sequences`; 0 when none."""
        free = self.free_bytes(layers, first, last)
        if free <= 0:
            return 0
        room = free / self.kv_bytes_per_sequence(layers, phase)
        return min(self.max_sequences, math.floor(room * (1 + 1e-12)))


class Costs:
    """Stage costs of one model, workload and calibration, made once a class and TP degree."""

    def __init__(
        self,
        model: ModelShape,
        workload: Workload,
        calibration: Calibration,
        catalogue: HardwareCatalogue,
    ) -> None:
        self.model, self.workload = model, workload
        self.calibration, self.catalogue = calibration, catalogue
        self._made: dict[tuple[NodeClass, int], StageCost] = {}
        self.estimates: dict[object, Any] = {}
        """Of pipelines, kept by the estimator: a search asks for the same ones again and again."""

    @property
    def engine(self) -> EngineProfile:
        """What engines take beside what devices do; nothing where the calibration does not say."""
        return self.calibration.engine or _NO_ENGINE

    def at_rate(self, arrival_rate_rps: float) -> Costs:
        """The same costs where so many requests a second arrive: what pipelines can do is the same,
        too."""
        workload = replace(self.workload, arrival_rate_rps=arrival_rate_rps)
        costs = Costs(self.model, workload, self.calibration, self.catalogue)
        costs.estimates = self.estimates
        return costs

    def of(self, kind: NodeClass, tp: int) -> StageCost:
        key = (kind, tp)
        if key not in self._made:
            self._made[key] = self._make(kind, tp)
        return self._made[key]

    def degrees(self, kind: NodeClass) -> list[int]:
        """TP degrees a node can run: powers of two and the whole node, where the heads allow; none
        where its backend cannot serve the model."""
        if not self.model.served_by(kind.backend):
            return []
        sizes = {1 << i for i in range(kind.gpu_count.bit_length()) if 1 << i <= kind.gpu_count}
        return sorted(n for n in sizes | {kind.gpu_count} if self.model.allows_tp(n))

    def reserve_bytes(self, kind: NodeClass, tp: int) -> float:
        """Activations kept free on each device."""
        c = self.calibration
        tokens = c.efficiency(kind.gpu).reserve_tokens
        tokens = c.reserve_tokens if tokens is None else tokens
        activations = tokens * (3 * self.model.ffn + self.model.vocab) * ELEMENT_BYTES
        return activations * (c.reserve_fixed + c.reserve_split / tp)

    def _make(self, kind: NodeClass, tp: int) -> StageCost:
        c, engine = self.calibration, self.engine
        return StageCost(
            kind=kind,
            device=device(self.model, kind, tp, c, self.catalogue),
            workload=self.workload,
            budget_bytes=kind.memory_bytes * c.memory_utilisation - self.reserve_bytes(kind, tp),
            max_sequences=min(
                c.max_sequences, engine.max_sequences if c.engine else c.max_sequences
            ),
            network_bytes_per_s=c.network_bytes_per_s(kind.network_gbps, kind.burst_gbps),
            hop_latency_s=c.network.hop_latency_us * 1e-6 + engine.hop_s,
            decode_scale=engine.decode_scale,
            prefill_scale=engine.prefill_scale,
            step_overhead_s=engine.step_overhead_s,
        )
