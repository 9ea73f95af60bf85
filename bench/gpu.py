"""The native engine on a CUDA device: is it exact there, how fast is it, how fast is it loaded?

The tests that need a device run first. Then random models of several sizes are asked for the same
generations undisturbed, cut and replayed, in other chunks and in a batch, and what they say is
compared bit for bit; then the large one's rates are measured beside transformers on the same card
and beside what the card does at best, and what keeps rows apart beside products as cuBLAS likes
them. Exit 1 where something is not exact, 2 where there is no device.

    python -m bench.gpu [--device cuda] [--sizes small medium large] [--json] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import gpu_exactness, gpu_rates, gpu_upload
from bench.gpu_model import SIZES, llama, random_weights
from services.engine.backend import HiddenDtype
from services.engine.native.cuda_layers import FEWEST_ROWS, CudaPacking
from services.engine.native.model import load_stage
from services.engine.native.products import padded_rows
from services.engine.native.stage import DTYPES, NativeStage
from services.model.config import parse_config

TESTS = "tests/unit/engine/native"
NO_DEVICE = 2
ROWS = (1, 8, 32, 256, 2048)
"""Of products that are timed."""
Save = Callable[[Mapping[str, Any]], None]
KINDS: tuple[HiddenDtype, ...] = ("bf16", "fp32")


def card(device: str) -> dict[str, Any]:
    """What it was measured on."""
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def run_tests() -> dict[str, Any]:
    """Those that are skipped where there is no device."""
    command = (sys.executable, "-m", "pytest", "-q", "-k", "gpu", TESTS)
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = ended.stdout.strip().splitlines()
    if ended.returncode:
        print(ended.stdout[-6000:], ended.stderr[-2000:], file=sys.stderr)
    return {"passed": ended.returncode == 0, "said": lines[-1] if lines else ""}


def stage_of(
    raw: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: HiddenDtype, device: str
) -> NativeStage:
    """All layers in one stage."""
    config = parse_config(dict(raw))
    layers = range(config.layer_count)
    return load_stage(config, tensors, layers, kv_blocks=1, dtype=dtype, device=device)


def cost(raw: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str) -> dict[str, Any]:
    """Milliseconds of all products of one layer, bf16: in sizes that agree, and as they come."""
    parts = [tensors[name].to(device) for name in tensors if ".0." in name and "proj" in name]
    packing = CudaPacking(parse_config(dict(raw)), torch.bfloat16, device)
    products = [packing.product(part, None) for part in parts]
    least = FEWEST_ROWS[torch.bfloat16]
    found: dict[str, Any] = {}
    for rows in ROWS:
        wide = {
            width: torch.randn((padded_rows(max(rows, least)), width), device=device).bfloat16()
            for width in {part.shape[1] for part in parts}
        }

        def exactly(wide: Mapping[int, Tensor] = wide) -> None:
            for product, part in zip(products, parts, strict=True):
                product(wide[part.shape[1]])

        def freely(wide: Mapping[int, Tensor] = wide, rows: int = rows) -> None:
            for part in parts:
                F.linear(wide[part.shape[1]][:rows], part)

        ours = gpu_rates.timed_s(exactly, 10)
        with gpu_rates.as_torch_comes():
            theirs = gpu_rates.timed_s(freely, 10)
        found[str(rows)] = {
            "exact_ms": round(1000 * ours, 4),
            "free_ms": round(1000 * theirs, 4),
            "ratio": round(ours / theirs, 2),
        }
    return found


def run(sizes: Sequence[str], device: str, save: Save) -> dict[str, Any]:
    """All figures, saved as they are found."""
    torch.set_num_threads(1)  # as in an engine
    report: dict[str, Any] = {"card": card(device), "tests": run_tests()}
    report["exactness"], report["rates"] = {}, {}
    for size in sizes:
        raw = llama(size)
        tensors = random_weights(raw, device)
        for dtype in KINDS:
            save(report)
            stage = stage_of(raw, tensors, dtype, device)
            found = gpu_exactness.measure(stage, raw["vocab_size"])
            report["exactness"][f"{size}-{dtype}"] = {
                "numerics_class": stage.facts.numerics_class,
                "exact": found.exact and stage.facts.exact,
                **found.figures(),
            }
            if size == sizes[-1]:
                report["rates"][dtype] = rates(raw, tensors, dtype, device, stage)
            stage.close()
    save(report)
    report["cost_of_exactness"] = cost(raw, tensors, device)
    report["upload"] = gpu_upload.uploads(tensors, device)
    report["load"] = gpu_upload.loads(raw, tensors, "bf16", device)
    found_exact = all(found["exact"] for found in report["exactness"].values())
    report["reached"] = found_exact and report["tests"]["passed"]
    save(report)
    return report


def rates(
    raw: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    dtype: HiddenDtype,
    device: str,
    stage: NativeStage,
) -> dict[str, Any]:
    """Of one type, with what they are compared with."""
    reference = gpu_rates.Transformers(raw, tensors, DTYPES[dtype], device)
    best = gpu_rates.ceilings(DTYPES[dtype], device)
    of = gpu_rates.work(raw, DTYPES[dtype].itemsize)
    return {
        "copy_gb_per_s": round(best.bytes_per_s / 1e9),
        "product_tflops": round(best.flops / 1e12, 1),
        **gpu_rates.measure(stage, reference, raw, of, best),
    }


def table(report: Mapping[str, Any]) -> str:
    """The figures, a line each."""
    lines = [f"{report['card']['name']}, torch {report['card']['torch']}"]
    lines.append(f"tests on the device: {report['tests']['said']}")
    for name, found in report["exactness"].items():
        lines.append(f"{name}: {'exact' if found['exact'] else 'NOT EXACT'}")
        for way in ("cut_and_replayed", "prefill_in_other_chunks", "in_a_batch_of_8"):
            figures = found[way]
            lines.append(
                f"  {way}: other ids in {figures['generations_with_other_ids']} of "
                f"{figures['generations']}, other log probabilities at "
                f"{figures['tokens_with_other_logprobs']} of {figures['tokens']} tokens, by up to "
                f"{figures['furthest_logprob']:.2g}"
            )
    for dtype, rates in report["rates"].items():
        lines.append(
            f"{dtype}: {rates['copy_gb_per_s']} GB/s copied, {rates['product_tflops']} TFLOP/s"
        )
        for phase, unit in (("decode", "steps_per_s"), ("prefill", "tokens_per_s")):
            for count, figures in rates[phase].items():
                lines.append(
                    f"  {phase} {count}: {figures[unit]} {unit}, transformers "
                    f"{figures[f'transformers_{unit}']} ({figures['over_transformers']} x), "
                    f"{figures['of_roofline']:.0%} of the roofline"
                )
    for part in ("cost_of_exactness", "upload", "load"):
        lines.append(f"{part}: {json.dumps(report[part])}")
    return "\n".join(lines)


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file, as it grows")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: torch finds none here, so nothing was measured", file=sys.stderr)
        sys.exit(NO_DEVICE)

    def save(report: Mapping[str, Any]) -> None:
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(report, indent=2) + "\n")

    report = run(arguments.sizes, arguments.device, save)
    print(json.dumps(report, indent=2) if arguments.json else table(report))
    sys.exit(0 if report["reached"] else 1)


if __name__ == "__main__":
    main()
