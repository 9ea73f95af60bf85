"""The native engine, and the backend on vLLM, over vLLM's own engine: the same weights and threads.

SmolLM2-135M-Instruct in bf16, a process each, all warm, one at work at a time. Each round has all
of them do the same, in an order that turns, so that drift and neighbours weigh on all; ratios are
taken within a round, and their median is the figure. Goals hold for the first number of threads.
On a machine that others use `--clock cpu` tells more: seconds that a process computed, all threads
together.

    python -m bench.vllm_rates [--rounds 7] [--threads 1 2] [--clock cpu] [--json] [--out FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contestants import CLOCKS, KINDS, MODEL_ID, Prompts

ROOT = Path(__file__).parents[1]
PYTHONS = {
    "native": Path(sys.executable),
    "backend": ROOT / ".venv-vllm/bin/python",
    "vllm": ROOT / ".venv-vllm/bin/python",
}
REFERENCE = "vllm"


@dataclass(frozen=True)
class Case:
    """What is measured: prompts, and ids behind each."""

    rate: str
    batch: int
    prompt: int
    outputs: int
    goals: Mapping[str, float]


CASES = {
    "decode_batch_1": Case("decode", 1, 32, 33, {"native": 2.5, "backend": 0.95}),
    "decode_batch_8": Case("decode", 8, 32, 33, {"native": 2.3, "backend": 0.95}),
    "decode_batch_32": Case("decode", 32, 32, 33, {"backend": 0.95}),
    "prefill_512": Case("prefill", 1, 512, 1, {"native": 1.5}),
}


def prepare(folder: Path) -> None:
    """The weights as a folder for vLLM, and in a store for stages."""
    from safetensors.torch import save_file

    from bench.engine import read_weights
    from services.tensorstore.importer import import_checkpoint
    from services.tensorstore.places.directory import DirectoryBackend
    from services.tensorstore.sources.opening import default_source, open_source

    config, tensors = read_weights()
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    save_file(tensors, model / "model.safetensors")
    with contextlib.closing(open_source(default_source())) as source:
        import_checkpoint(source, DirectoryBackend(folder / "store"), MODEL_ID)


class Process:
    """A contestant that waits to be asked."""

    def __init__(self, kind: str, folder: Path, threads: int) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
        }
        self._process = subprocess.Popen(
            (PYTHONS[kind], "-m", "bench.contestants", kind, folder, str(threads)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / f"{kind}.log").open("w"),
            env=environment,
            text=True,
        )
        self._log = folder / f"{kind}.log"
        self.name = str(self._answer()["name"])

    def measure(self, prompts: Prompts, outputs: int, clock: str) -> dict[str, float]:
        assert self._process.stdin is not None
        asked = {"prompts": prompts, "outputs": outputs, "clock": clock}
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends at the end of what it is asked."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a contestant ended:\n{self._log.read_text()[-2000:]}")
        found: dict[str, Any] = json.loads(line)
        return found


def rounds_of(
    processes: Mapping[str, Process], case: Case, rounds: int, seed: int, clock: str
) -> Iterator[dict[str, float]]:
    """Rates by contestant; the first round only warms up."""
    chance, order = random.Random(seed), list(processes)
    for number in range(rounds + 1):
        prompts = [chance.choices(range(5, 49000), k=case.prompt) for _ in range(case.batch)]
        rates = {
            kind: processes[kind].measure(prompts, case.outputs, clock)[case.rate] for kind in order
        }
        order.append(order.pop(0))
        if number:
            yield rates


def figure(rates: Sequence[Mapping[str, float]], goals: Mapping[str, float]) -> dict[str, Any]:
    """Medians by contestant, and of each one's ratio over vLLM's own engine within a round."""
    found: dict[str, Any] = {
        "tokens_per_s": {
            kind: round(statistics.median(each[kind] for each in rates), 1) for kind in rates[0]
        },
        "rounds": len(rates),
        "over_vllm": {},
    }
    for kind in rates[0]:
        if kind == REFERENCE:
            continue
        ratios = sorted(each[kind] / each[REFERENCE] for each in rates)
        found["over_vllm"][kind] = {
            "ratio": round(statistics.median(ratios), 2),
            "ratio_min": round(ratios[0], 2),
            "ratio_max": round(ratios[-1], 2),
            "goal": goals.get(kind),
        }
    return found


def reached(figures: Mapping[str, Any]) -> bool:
    """Whether every ratio that has a goal is at it."""
    ratios = [each for figure in figures.values() for each in figure["over_vllm"].values()]
    return all(each["goal"] is None or each["ratio"] >= each["goal"] for each in ratios)


def run(rounds: int, threads: Sequence[int], names: Sequence[str], clock: str) -> dict[str, Any]:
    """All figures, by number of threads."""
    report: dict[str, Any] = {"clock": clock, "threads": {}}
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        prepare(folder)
        for count in threads:
            processes = {kind: Process(kind, folder, count) for kind in KINDS}
            report["contestants"] = {kind: each.name for kind, each in processes.items()}
            report["threads"][str(count)] = {
                name: figure(
                    list(rounds_of(processes, CASES[name], rounds, seed, clock)), CASES[name].goals
                )
                for seed, name in enumerate(names)
            }
            for process in processes.values():
                process.close()
    report["reached"] = reached(report["threads"][str(threads[0])])
    return report


def table(report: Mapping[str, Any]) -> str:
    """The figures, a line each."""
    lines = [f"tokens/s ({report['clock']}) over vLLM's own engine"]
    lines += [f"{kind}: {name}" for kind, name in report["contestants"].items()]
    for threads, figures in report["threads"].items():
        for name, found in figures.items():
            rates = found["tokens_per_s"]
            for kind, each in found["over_vllm"].items():
                goal = f", goal {each['goal']}" if each["goal"] else ""
                lines.append(
                    f"{threads} thread(s), {name}: {kind} {rates[kind]} over {rates[REFERENCE]}, "
                    f"{each['ratio']} x ({each['ratio_min']} to {each['ratio_max']}, "
                    f"{found['rounds']} rounds{goal})"
                )
    return "\n".join(lines)


def main() -> None:
    """Print the report; exit 1 when a goal is missed at the first number of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    if not PYTHONS["vllm"].exists():
        sys.exit("no .venv-vllm here: `make vllm` makes it")
    report = run(arguments.rounds, arguments.threads, arguments.cases, arguments.clock)
    text = json.dumps(report, indent=2)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")
    print(text if arguments.json else table(report))
    sys.exit(0 if report["reached"] else 1)


if __name__ == "__main__":
    main()
