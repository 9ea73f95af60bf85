"""How fast a stage prefills and decodes on a GPU, beside transformers and beside what the card
could do at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bench.stage_runs import StageRuns
from services.engine.backend import BLOCK_SIZE, StageBackend

PROMPT = 512
"""Tokens before those that are decoded."""
STEPS = 24
PREFILL = 2048
BATCHES = (1, 8, 32, 64)
PAIRS = 3
BLOCKS = (PROMPT + STEPS) // BLOCK_SIZE + 1


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the card does at best, as measured."""

    bytes_per_s: float
    """Read and written, in one large copy."""
    flops: float
    """Of one large product."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a model asks for at least: each weight read once a step, each product done once."""

    layer_weights: int
    head_weights: int
    item_bytes: int
    kv_bytes: int
    """Of one position of one sequence, over all layers."""
    attention_flops: int
    """Of one position that one row sees, over all layers."""

    def step_bytes(self, batch: int, context: int) -> int:
        """Of one step of decoding; `context` is what a row sees."""
        weights = (self.layer_weights + self.head_weights) * self.item_bytes
        return weights + batch * context * self.kv_bytes

    def step_floor_s(self, ceilings: Ceilings, batch: int, context: int) -> float:
        """Or its products take longer than its bytes."""
        flops = 2 * batch * (self.layer_weights + self.head_weights)
        flops += batch * context * self.attention_flops
        return max(self.step_bytes(batch, context) / ceilings.bytes_per_s, flops / ceilings.flops)

    def prefill_floor_s(self, ceilings: Ceilings, tokens: int) -> float:
        """Of one prompt whose last row alone needs logits; a row sees half of it on average."""
        flops = 2 * tokens * self.layer_weights + 2 * self.head_weights
        flops += tokens * (tokens + 1) // 2 * self.attention_flops
        return max(flops / ceilings.flops, self.step_bytes(1, tokens) / ceilings.bytes_per_s)


def work(raw: Mapping[str, Any], item_bytes: int) -> Work:
    """Of a Llama whose head is a matrix of its own."""
    hidden, heads, size = (raw[k] for k in ("hidden_size", "num_attention_heads", "head_dim"))
    layers, keys = raw["num_hidden_layers"], raw["num_key_value_heads"] * size
    matrices = 2 * heads * size * hidden + 2 * keys * hidden + 3 * hidden * raw["intermediate_size"]
    return Work(
        layers * matrices,
        raw["vocab_size"] * hidden,
        item_bytes,
        layers * 2 * keys * item_bytes,
        layers * 4 * heads * size,
    )


def timed_s(call: Callable[[], Any], repeats: int, rounds: int = 3) -> float:
    """Of one call on the device, of `repeats` in a row; the least of some rounds."""
    call()
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - began) / repeats)
    return min(found)


def ceilings(dtype: torch.dtype, device: str) -> Ceilings:
    """Measured with random numbers: of zeros some cards are faster."""
    source = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = timed_s(lambda: target.copy_(source), 10)
    side = 8192 if dtype == torch.bfloat16 else 4096
    a, b = (torch.randn((side, side), device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    product_s = timed_s(lambda: torch.mm(a, b, out=out), 10)
    return Ceilings(2 * (1 << 30) / copy_s, 2 * side**3 / product_s)


@contextmanager
def as_torch_comes() -> Iterator[None]:
    """Products as torch makes them unless told otherwise; the engine tells it."""
    settings: Any = torch.backends.cuda
    settings.preferred_blas_library("default")
    settings.matmul.allow_bf16_reduced_precision_reduction = (True, True)
    try:
        yield
    finally:
        settings.preferred_blas_library("cublaslt")
        settings.matmul.allow_bf16_reduced_precision_reduction = (False, False)


class Transformers:
    """The reference: the same type, its default attention, its own KV cache, no generate()
    around it; ids reach the host at every step, as they must where somebody reads them."""

    def __init__(
        self, raw: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype, device: str
    ) -> None:
        fields = {key: value for key, value in raw.items() if key != "architectures"}
        with torch.device(device):
            model: Any = LlamaForCausalLM(LlamaConfig(**fields))
        self._device, self.model = device, model.to(dtype).eval()
        self.model.load_state_dict(tensors, strict=False)

    @as_torch_comes()
    @torch.inference_mode()
    def decode_s(self, ids: Tensor) -> float:
        """Of one step behind the prompts."""
        output = self.model(ids.to(self._device), use_cache=True, logits_to_keep=1)
        cache, token = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
        token.tolist()
        began = time.perf_counter()
        for _ in range(STEPS):
            output = self.model(token, past_key_values=cache, use_cache=True)
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            token.tolist()
        return (time.perf_counter() - began) / STEPS

    @as_torch_comes()
    @torch.inference_mode()
    def prefill_s(self, ids: Tensor) -> float:
        """Up to the first token."""
        began = time.perf_counter()
        output = self.model(ids.to(self._device), use_cache=True, logits_to_keep=1)
        output.logits[:, -1].argmax(-1).tolist()
        return time.perf_counter() - began


def compare(
    ours: Callable[[Tensor], float],
    theirs: Callable[[Tensor], float],
    shape: tuple[int, int],
    vocab_size: int,
) -> tuple[float, float]:
    """Median seconds of both over interleaved pairs; the first pair only warms up."""
    generator = torch.Generator().manual_seed(0)
    times: list[tuple[float, float]] = []
    for _ in range(PAIRS + 1):
        ids = torch.randint(0, vocab_size, shape, generator=generator)
        times.append((ours(ids), theirs(ids)))
    first, second = zip(*times[1:], strict=True)
    return statistics.median(first), statistics.median(second)


def figures(
    ours_s: float, theirs_s: float, floor_s: float, *, per_s: float, unit: str
) -> dict[str, Any]:
    """`per_s` of the unit are made in one of these times."""
    return {
        unit: round(per_s / ours_s, 1),
        f"transformers_{unit}": round(per_s / theirs_s, 1),
        f"roofline_{unit}": round(per_s / floor_s, 1),
        "over_transformers": round(theirs_s / ours_s, 2),
        "of_roofline": round(floor_s / ours_s, 3),
    }


def measure(
    stage: StageBackend, reference: Transformers, raw: Mapping[str, Any], of: Work, best: Ceilings
) -> dict[str, Any]:
    """Rates of a whole model held as one stage."""
    native, vocab_size = StageRuns(stage, STEPS), raw["vocab_size"]
    found: dict[str, Any] = {"decode": {}, "prefill": {}}
    stage.begin(BLOCKS * max(BATCHES))
    for batch in BATCHES:
        ours, theirs = compare(native.decode_s, reference.decode_s, (batch, PROMPT), vocab_size)
        floor = of.step_floor_s(best, batch, PROMPT + STEPS // 2)
        found["decode"][str(batch)] = figures(ours, theirs, floor, per_s=1, unit="steps_per_s")
    for tokens in (256, PREFILL):
        ours, theirs = compare(native.prefill_s, reference.prefill_s, (1, tokens), vocab_size)
        floor = of.prefill_floor_s(best, tokens)
        found["prefill"][str(tokens)] = figures(
            ours, theirs, floor, per_s=tokens, unit="tokens_per_s"
        )
    stage.end()
    return found
