"""The native engine over transformers: the same weights, the same threads, in one process.

Pairs alternate: native first, then transformers, then the other way round, so that drift and
neighbours weigh on both. Ratios are taken within a pair, and their median is the figure.

    python -m bench.engine [--pairs 7] [--threads 1 2] [--json] [--out FILE]
"""

from __future__ import annotations

import os

os.environ["ONEDNN_MAX_CPU_ISA"] = "DEFAULT"  # the reference may use all the processor has

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bench.stage_runs import StageRuns
from services.engine.native.model import load_stage
from services.engine.native.stage import NativeStage
from services.model.config import parse_config
from services.tensorstore.sources.opening import default_source, open_source

PROMPT_TOKENS = 32
DECODED_TOKENS = 24
PREFILL_TOKENS = 512
BATCHES = (1, 8)
GOAL = 2.5
KV_BLOCKS = 512

Measure = Callable[[Tensor], float]  # ids [batch, prompt] to tokens/s


def read_weights() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and bf16 tensors of SmolLM2-135M-Instruct, by their Hugging Face names."""
    source = open_source(default_source())
    try:
        tensors = {}
        for name, tensor in source.tensors.items():
            data = torch.empty(tensor.shape, dtype=torch.bfloat16)
            buffer = memoryview(data.view(torch.uint8).view(-1).numpy())  # type: ignore[arg-type]
            source.read_rows(name, 0, tensor.shape[0], buffer)
            tensors[name] = data
        return dict(source.config), tensors
    finally:
        source.close()


class Native:
    """The engine's own stage, all layers in one."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor], threads: int) -> None:
        parsed = parse_config(config)
        self.stage: NativeStage = load_stage(
            parsed, tensors, range(parsed.layer_count), kv_blocks=KV_BLOCKS, threads=threads
        )
        self.stage.begin(KV_BLOCKS)
        self._runs = StageRuns(self.stage, DECODED_TOKENS)

    def decode(self, ids: Tensor) -> float:
        """Tokens/s of decoding behind the prompts."""
        return len(ids) / self._runs.decode_s(ids)

    def prefill(self, ids: Tensor) -> float:
        """Prompt tokens/s up to the first token."""
        return ids.numel() / self._runs.prefill_s(ids)


class Transformers:
    """The reference: bf16, its default attention, its own KV cache, no generate() around it."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        fields = {k: v for k, v in config.items() if k not in ("architectures", "torch_dtype")}
        model: Any = LlamaForCausalLM(LlamaConfig(**fields))
        self.model = model.bfloat16().eval()
        self.model.load_state_dict(tensors, strict=False)

    @torch.inference_mode()
    def decode(self, ids: Tensor) -> float:
        """Tokens/s of decoding behind the prompts."""
        output = self.model(ids, use_cache=True, logits_to_keep=1)
        cache, token = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
        began = time.perf_counter()
        for _ in range(DECODED_TOKENS):
            output = self.model(token, past_key_values=cache, use_cache=True)
            token = output.logits[:, -1].argmax(-1, keepdim=True)
        return len(ids) * DECODED_TOKENS / (time.perf_counter() - began)

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> float:
        """Prompt tokens/s up to the first token."""
        began = time.perf_counter()
        self.model(ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)
        return ids.numel() / (time.perf_counter() - began)


def compare(native: Measure, reference: Measure, shape: tuple[int, int], pairs: int) -> Any:
    """Medians of both and of the ratio over interleaved pairs; the first pair only warms up."""
    generator = torch.Generator().manual_seed(0)
    rates: list[tuple[float, float]] = []
    for pair in range(pairs + 1):
        ids = torch.randint(5, 49000, shape, generator=generator)
        if pair % 2:
            second = reference(ids)
            rates.append((native(ids), second))
        else:
            first = native(ids)
            rates.append((first, reference(ids)))
    del rates[0]
    ratios = sorted(ours / theirs for ours, theirs in rates)
    return {
        "native_tokens_per_s": round(statistics.median(ours for ours, _ in rates), 1),
        "transformers_tokens_per_s": round(statistics.median(theirs for _, theirs in rates), 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(ratios[0], 2),
        "ratio_max": round(ratios[-1], 2),
        "pairs": pairs,
    }


def run(pairs: int = 7, threads: Sequence[int] = (1, 2)) -> dict[str, Any]:
    """All figures, by number of threads."""
    config, tensors = read_weights()
    reference = Transformers(config, tensors)
    report: dict[str, Any] = {"goal_ratio": GOAL, "prompt_tokens": PROMPT_TOKENS, "threads": {}}
    for count in threads:
        torch.set_num_threads(count)
        native = Native(config, tensors, count)
        report["numerics_class"] = native.stage.facts.numerics_class
        figures = {
            f"decode_batch_{batch}": compare(
                native.decode, reference.decode, (batch, PROMPT_TOKENS), pairs
            )
            for batch in BATCHES
        }
        figures[f"prefill_{PREFILL_TOKENS}"] = compare(
            native.prefill, reference.prefill, (1, PREFILL_TOKENS), pairs
        )
        report["threads"][str(count)] = figures
        native.stage.close()
    decodes = itertools.product(threads[:1], BATCHES)
    report["reached"] = all(
        report["threads"][str(count)][f"decode_batch_{batch}"]["ratio"] >= GOAL
        for count, batch in decodes
    )
    return report


def table(report: dict[str, Any]) -> str:
    """The figures, a line each."""
    lines = [f"{report['numerics_class']}, tokens/s; goal {report['goal_ratio']} x"]
    for threads, figures in report["threads"].items():
        for name, figure in figures.items():
            lines.append(
                f"{threads} thread(s), {name}: {figure['native_tokens_per_s']} native, "
                f"{figure['transformers_tokens_per_s']} transformers, {figure['ratio']} x "
                f"({figure['ratio_min']} to {figure['ratio_max']}, {figure['pairs']} pairs)"
            )
    return "\n".join(lines)


def main() -> None:
    """Print the report; exit 1 when the goal is missed at the first number of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    report = run(arguments.pairs, arguments.threads)
    text = json.dumps(report, indent=2)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")
    print(text if arguments.json else table(report))
    sys.exit(0 if report["reached"] else 1)


if __name__ == "__main__":
    main()
