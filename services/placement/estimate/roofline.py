"""Time of one layer's operations on one device: max(arithmetic, memory traffic) + launch.

T tokens are computed, b sequences read their context, n devices share the layer; 2 bytes an
element. The table of operations stands in docs/placement.md. Every function takes numbers or
arrays of T and b (broadcast together) and returns seconds of that shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.placement.estimate.calibration import Calibration
from services.placement.estimate.catalogue import HardwareCatalogue
from services.placement.estimate.cluster import NodeClass
from services.placement.estimate.model import ELEMENT_BYTES, ModelShape

Array = npt.NDArray[np.float64]
Number = float | Array


def floats(number: Number) -> Number:
    """As a float, or an array of them: one number as an array costs ten times as much."""
    return float(number) if isinstance(number, int | float) else np.asarray(number, dtype=float)


@dataclass(frozen=True)
class Operation:
    """Time of an operation, and the part of it that each resource alone would take."""

    name: str
    compute_s: Number
    traffic_s: Number
    network_s: Number
    launch_s: float

    @property
    def time_s(self) -> Number:
        compute_s, traffic_s = self.compute_s, self.traffic_s
        if isinstance(compute_s, float) and isinstance(traffic_s, float):
            slower_s: Number = max(compute_s, traffic_s)
        else:
            slower_s = np.maximum(compute_s, traffic_s)
        return slower_s + self.network_s + self.launch_s


@dataclass(frozen=True)
class Device:
    """Rates of `tp` devices of one class under a calibration; bytes/s, FLOP/s, seconds."""

    model: ModelShape
    tp: int
    flops_per_s: float
    bytes_per_s: float
    attention_bytes_per_s: float
    all_reduce_bytes_per_s: float
    all_reduce_latency_s: float
    launch_s: float
    tile_tokens: int
    exact_tiles: bool

    def product(
        self, name: str, rows: Number, k: float, n: float, weight_bytes: Number = ELEMENT_BYTES
    ) -> Operation:
        """A matrix product [rows, k] x [k, n] with weights read once, in whole tiles of rows.

        A running batch varies, so unless `exact_tiles` the mean of the rounding is taken.
        """
        rows = floats(rows)
        if self.tile_tokens and self.exact_tiles:
            computed: Number = np.ceil(rows / self.tile_tokens) * self.tile_tokens
        else:
            computed = rows + self.tile_tokens / 2
        flops = 2.0 * computed * k * n
        traffic = weight_bytes * k * n + ELEMENT_BYTES * rows * (k + n)
        return Operation(
            name, flops / self.flops_per_s, traffic / self.bytes_per_s, 0.0, self.launch_s
        )

    def attention(
        self, tokens: Number, sequences: Number, mean: float, context: float
    ) -> Operation:
        """Each token attends to `mean` positions; each sequence's `context` is read once."""
        m = self.model
        width = m.heads * m.head_dim / self.tp
        tokens = floats(tokens)
        flops = 4.0 * tokens * mean * width
        kv = floats(sequences) * context * 2 * m.kv_heads_per_rank(self.tp) * m.head_dim
        traffic = ELEMENT_BYTES * (kv + 2 * tokens * width)
        return Operation(
            "attention",
            flops / self.flops_per_s,
            traffic / self.attention_bytes_per_s,
            0.0,
            self.launch_s,
        )

    def all_reduce(self, tokens: Number) -> Operation:
        """Both all-reduces of a layer: bytes x 2(n-1)/n over the bus bandwidth, and latency."""
        share = 2.0 * (self.tp - 1) / self.tp
        size = ELEMENT_BYTES * floats(tokens) * self.model.hidden
        each = share * size / self.all_reduce_bytes_per_s + self.all_reduce_latency_s
        return Operation("all_reduce", 0.0, 0.0, 2 * each, 0.0)

    def layer(
        self, tokens: Number, sequences: Number, mean: float, context: float
    ) -> list[Operation]:
        """The operations of one layer, in the order they run."""
        m, n = self.model, self.tp
        qkv = (m.heads + 2 * m.kv_heads_per_rank(n) * n) * m.head_dim / n
        width = m.heads * m.head_dim / n
        mean, context = m.seen(mean), m.seen(context)
        rows, read = self._experts(tokens)
        operations = [
            self.product("qkv", tokens, m.hidden, qkv, m.weight_bytes),
            self.attention(tokens, sequences, mean, context),
            self.product("o", tokens, width, m.hidden, m.weight_bytes),
            self.product("gate_up", rows, m.hidden, 2 * m.ffn / n, read),
            self.product("down", rows, m.ffn / n, m.hidden, read),
        ]
        return [*operations, self.all_reduce(tokens)] if n > 1 else operations

    def _experts(self, tokens: Number) -> tuple[Number, Number]:
        """Rows that all FFNs compute together, and bytes read of each number of an FFN's weights:
        of experts, as many as some token passes, where each is as likely."""
        m = self.model
        if m.experts == 1:
            return tokens, m.weight_bytes
        missed = (1 - m.experts_per_token / m.experts) ** np.asarray(tokens, dtype=float)
        return np.asarray(tokens) * m.experts_per_token, m.weight_bytes * m.experts * (1 - missed)

    def prefill(self, sequences: Number, prompt: int) -> list[Operation]:
        """One layer over `sequences` prompts of `prompt` tokens each."""
        tokens = floats(sequences) * prompt
        return self.layer(tokens, sequences, (prompt + 1) / 2, prompt)

    def decode(self, sequences: Number, context: float) -> list[Operation]:
        """One layer over one token of each sequence, `context` tokens behind it."""
        return self.layer(sequences, sequences, context, context)

    def embedding(self, tokens: Number) -> Operation:
        traffic = 2 * ELEMENT_BYTES * floats(tokens) * self.model.hidden
        return Operation("embedding", 0.0, traffic / self.bytes_per_s, 0.0, 0.0)

    def lm_head(self, sequences: Number) -> Operation:
        """Logits of the last token of each sequence."""
        return self.product("lm_head", sequences, self.model.hidden, self.model.vocab / self.tp)


def device(
    model: ModelShape,
    kind: NodeClass,
    tp: int,
    calibration: Calibration,
    catalogue: HardwareCatalogue,
    *,
    exact_tiles: bool = False,
) -> Device:
    """The rates of `tp` devices of a class."""
    efficiency = calibration.efficiency(kind.gpu)
    bus, latency_s = calibration.all_reduce(catalogue, kind.gpu, tp) if tp > 1 else (1.0, 0.0)
    peak = kind.gpu.bandwidth_gb_per_s * 1e9 * kind.speed
    return Device(
        model=model,
        tp=tp,
        flops_per_s=kind.gpu.fp16_tflops * 1e12 * kind.speed * efficiency.mfu,
        bytes_per_s=peak * efficiency.mbu,
        attention_bytes_per_s=peak * (efficiency.attention_mbu or efficiency.mbu),
        all_reduce_bytes_per_s=bus,
        all_reduce_latency_s=latency_s,
        launch_s=efficiency.launch_us * 1e-6,
        tile_tokens=efficiency.tile_tokens,
        exact_tiles=exact_tiles,
    )


def total_s(operations: list[Operation]) -> Array:
    """Seconds of the operations one after another."""
    return np.asarray(sum((op.time_s for op in operations), 0.0))
