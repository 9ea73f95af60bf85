"""What `bench.vllm_rates` compares, a process each: `python -m bench.contestants KIND`.

A process is told by lines of JSON what to measure and answers each with one. All have the same
weights, the same ids and the same number of steps; of native and vLLM stages the production
scheduler makes the batches, of vLLM's own engine its own does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

KINDS = ("native", "backend", "vllm")
"""Our kernels, our backend on vLLM, and vLLM's own engine."""
CLOCKS: Mapping[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "cpu": time.process_time,
}
KV_BLOCKS = 512
LAYERS = 30
MODEL_ID = "rates"
Prompts = Sequence[Sequence[int]]


class Contestant(Protocol):
    """Generates greedily, all prompts at once."""

    name: str

    def begin(self, prompts: Prompts, outputs: int) -> None:
        """Takes the prompts; nothing is computed yet."""
        ...

    def step(self) -> list[int]:
        """One step; how many ids each prompt has by now, none once all have ended."""
        ...


class Staged:
    """A stage of all layers under the scheduler that engines have."""

    def __init__(self, kind: str, folder: Path, threads: int) -> None:
        from bench.scheduled import Scheduled
        from services.common.generation import LayerRange, ModelRef
        from services.common.nodes import StageSpec
        from services.engine.core.scheduler import SchedulerSettings
        from services.engine.stages import StageLoader

        store = str(folder / "store")
        loader: StageLoader
        if kind == "native":
            from services.engine.native.loader import NativeLoader, NativeOptions

            loader = NativeLoader(NativeOptions(store, "bf16", "cpu", threads, None))
        else:
            from services.engine.vllm.loader import VllmLoader, VllmOptions

            loader = VllmLoader(VllmOptions(store, "bf16", "cpu", 256, 64))
        stage = loader.load(
            ModelRef(MODEL_ID, ""), StageSpec(LayerRange(0, LAYERS)), lambda done, total: None
        )
        self.name = stage.facts.numerics_class
        # Each run is alone: blocks that two runs share would be computed once.
        settings = SchedulerSettings(share_prefixes=False, max_drafts=0)
        self._runs = Scheduled([stage], settings, KV_BLOCKS)
        self._count = 0

    def begin(self, prompts: Prompts, outputs: int) -> None:
        from services.common.generation import GenerationRequest, ModelRef, Sampling

        self._runs.outputs.clear()
        for ids in prompts:
            self._count += 1
            sampling = Sampling(max_tokens=outputs, temperature=0.0, ignore_eos=True)
            model = ModelRef(MODEL_ID, "")
            self._runs.start(GenerationRequest(str(self._count), model, tuple(ids), sampling))

    def step(self) -> list[int]:
        if not self._runs.depart():
            return []
        self._runs.arrive()
        return [len(ids) for ids in self._runs.outputs.values()]


class VllmEngine:
    """vLLM's own engine in this process, eager, its cache of prefixes off."""

    def __init__(self, folder: Path) -> None:
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        import vllm

        self._engine: Any = vllm.LLM(
            model=str(folder / "model"),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            enforce_eager=True,
            enable_prefix_caching=False,
            max_model_len=1024,
            max_num_seqs=64,
        ).llm_engine
        self.name = f"vllm{vllm.__version__}"
        self._ids: dict[str, int] = {}
        self._count = 0

    def begin(self, prompts: Prompts, outputs: int) -> None:
        from vllm import SamplingParams

        how = SamplingParams(temperature=0.0, max_tokens=outputs, ignore_eos=True, detokenize=False)
        self._ids.clear()
        for ids in prompts:
            self._count += 1
            self._ids[str(self._count)] = 0
            self._engine.add_request(str(self._count), {"prompt_token_ids": list(ids)}, how)

    def step(self) -> list[int]:
        if not self._engine.has_unfinished_requests():
            return []
        for output in self._engine.step():
            self._ids[output.request_id] = len(output.outputs[0].token_ids)
        return list(self._ids.values())


def measure(
    contestant: Contestant, prompts: Prompts, outputs: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Prompt tokens/s up to the step by which each prompt has an id, and ids/s behind it."""
    began_s = clock()
    contestant.begin(prompts, outputs)
    while not all(first := contestant.step()):
        pass
    read_s = clock()
    last = first
    while counts := contestant.step():
        last = counts
    decoded = sum(last) - sum(first)
    rates = {"prefill": sum(map(len, prompts)) / (read_s - began_s)}
    return rates | ({"decode": decoded / (clock() - read_s)} if decoded else {})


def main() -> None:
    """Answers on what was standard output; libraries that print there print to standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("threads", type=int)
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import torch

    torch.set_num_threads(arguments.threads)
    contestant: Contestant = (
        VllmEngine(arguments.folder)
        if arguments.kind == "vllm"
        else Staged(arguments.kind, arguments.folder, arguments.threads)
    )
    torch.set_num_threads(arguments.threads)
    print(json.dumps({"name": contestant.name}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        found = measure(contestant, asked["prompts"], asked["outputs"], CLOCKS[asked["clock"]])
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
