"""What shared prefixes give: how soon a chat's second turn is answered, and what a cache finds.

"second_turn": the production scheduler over all layers of SmolLM2-135M-Instruct in one process, one
thread. A chat goes on behind some 1,900 tokens of history. Pairs alternate, with sharing first and
then last, so that drift and neighbours weigh on both; both must say the same, id by id. A pair's
ratio is the time to the first token without over the time with.

"trace" (with --trace FILE, in the format of the Mooncake traces): the scheduler alone, over the
first requests one after another; a request's hash ids are blocks of 16 tokens each. Hits over those
of a cache of as many blocks that throws out what was used least recently and knows nothing else.

"fetched" (with --fetch LENGTHS): a prompt that another pipeline of a real mesh has read, fetched
from there over computed; see prefix_mesh.py.

    python -m bench.prefix [--rounds 5] [--trace FILE] [--requests 2000]
        [--fetch 250,500,1000,1900 [--bytes-per-s 0]] [--json] [--out FILE]
"""

from __future__ import annotations

import os

os.environ["ONEDNN_MAX_CPU_ISA"] = "DEFAULT"

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from bench import prefix_mesh
from bench.engine import read_weights
from bench.scheduled import Scheduled
from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.engine.backend import BLOCK_SIZE, Sampled
from services.engine.core.actions import SequenceKey
from services.engine.core.scheduler import Scheduler, SchedulerSettings
from services.engine.native.model import load_stage
from services.model.config import parse_config
from services.tensorstore.sources.opening import default_source, open_source

MODEL = ModelRef("bench", "d")
KV_BLOCKS = 256
HISTORY_TOKENS = 1900
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
CACHES = (500, 1000, 2000, 4000, 8000)
"""Blocks."""
WITHIN = 0.02
"""Of the other cache's hits."""


def chat() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A history of turns, and the question that comes behind it."""
    source = open_source(default_source())
    tokenizer = Tokenizer.from_str(source.files["tokenizer.json"].decode())
    source.close()
    questions = Path(__file__).with_name("chats.txt").read_text().splitlines()
    history: list[int] = []
    while len(history) < HISTORY_TOKENS:
        for question in questions:
            history += tokenizer.encode(TURN.format(question) + "Yes.<|im_end|>\n").ids
    asked = tokenizer.encode(TURN.format("And what would you say in one word?")).ids
    return tuple(history[:HISTORY_TOKENS]), tuple(asked)


class SecondTurn:
    """Runs the same second turn with and without the first one's blocks."""

    def __init__(self) -> None:
        config, tensors = read_weights()
        parsed = parse_config(config)
        self._stage = load_stage(parsed, tensors, range(parsed.layer_count), kv_blocks=KV_BLOCKS)
        self._history, self._asked = chat()

    def first_token(self, *, shares: bool) -> tuple[float, int, list[int]]:
        """Seconds to the first token, rows computed up to it, and the whole answer."""
        run = Scheduled([self._stage], SchedulerSettings(share_prefixes=shares), KV_BLOCKS)
        if shares:
            run.start(self._request("first", self._history, 1))
            run.finish()
        run.start(self._request("second", (*self._history, *self._asked), 8))
        before, key = len(run.steps), SequenceKey("second", 1, 0)
        began_s = time.thread_time()
        while not run.outputs[key]:
            if not run.depart():
                run.arrive()
        took_s = time.thread_time() - began_s
        rows = sum(len(step.token_ids) for step in run.steps[before:])
        run.finish()
        return took_s, rows, run.outputs[key]

    def _request(self, name: str, prompt: tuple[int, ...], tokens: int) -> GenerationRequest:
        return GenerationRequest(name, MODEL, prompt, Sampling(tokens, temperature=0.0))

    def figures(self, rounds: int) -> dict[str, Any]:
        """Ratios of interleaved pairs."""
        ratios: list[float] = []
        took_s: dict[bool, list[float]] = {True: [], False: []}
        rows: dict[bool, int] = {}
        for number in range(2 * rounds):
            said = {}
            for shares in (True, False) if number % 2 else (False, True):
                spent_s, rows[shares], said[shares] = self.first_token(shares=shares)
                took_s[shares].append(spent_s)
            if said[True] != said[False]:
                raise AssertionError("shared blocks changed an id")
            ratios.append(took_s[False][-1] / took_s[True][-1])
        return {
            "history_tokens": len(self._history),
            "new_tokens": len(self._asked),
            "rows_with": rows[True],
            "rows_without": rows[False],
            "ratio": round(statistics.median(ratios), 1),
            "ratio_min": round(min(ratios), 1),
            "ratio_max": round(max(ratios), 1),
            "first_token_s_with": round(statistics.median(took_s[True]), 4),
            "first_token_s_without": round(statistics.median(took_s[False]), 4),
        }


def read_trace(path: Path, count: int) -> list[list[int]]:
    """The hash ids of the first requests."""
    with path.open() as lines:
        return [json.loads(line)["hash_ids"] for line, _ in zip(lines, range(count), strict=False)]


def found(requests: Sequence[Sequence[int]], blocks: int) -> int:
    """Blocks that the scheduler finds, one request after another."""
    longest = max(map(len, requests))
    settings = SchedulerSettings(token_budget=(longest + 1) * BLOCK_SIZE, max_drafts=0)
    scheduler, hits = Scheduler(settings, blocks, 1), 0
    for number, ids in enumerate(requests):
        prompt = tuple(token for each in ids for token in (each,) * BLOCK_SIZE)
        key = SequenceKey(str(number), 1, 0)
        request = GenerationRequest(key.generation_id, MODEL, (*prompt, 1), Sampling(1))
        scheduler.start(key, request, ())
        step = scheduler.next_step()
        if step is None:
            raise AssertionError(f"{blocks} blocks hold no request of {len(ids)}")
        (token,) = scheduler.complete(step.number, [Sampled(step.batch.steps[0].slot, 0, 1)]).tokens
        hits += token.cached_tokens // BLOCK_SIZE
        scheduler.stop(key)
    return hits


def least_recently_used(requests: Sequence[Sequence[int]], blocks: int) -> int:
    """Blocks that a cache finds of each request's beginning."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for ids in requests:
        hits += next((at for at, name in enumerate(ids) if name not in cache), len(ids))
        for name in reversed(ids):
            cache[name] = None
            cache.move_to_end(name)
        while len(cache) > blocks:
            cache.popitem(last=False)
    return hits


def trace_figures(path: Path, count: int) -> dict[str, Any]:
    """Hits of both caches at several sizes."""
    requests = read_trace(path, count)
    figures = {}
    for blocks in CACHES:
        mine, theirs = found(requests, blocks), least_recently_used(requests, blocks)
        figures[str(blocks)] = {
            "hits": mine,
            "least_recently_used": theirs,
            "ratio": round(mine / theirs, 4),
        }
    return {"requests": len(requests), "blocks": sum(map(len, requests)), "caches": figures}


def table(report: dict[str, Any]) -> str:
    """The figures, a line each."""
    turn = report["second_turn"]
    lines = [
        f"second turn behind {turn['history_tokens']} tokens: first token {turn['ratio']} x as "
        f"soon ({turn['ratio_min']} to {turn['ratio_max']}), {turn['first_token_s_with']} s for "
        f"{turn['rows_with']} rows over {turn['first_token_s_without']} s for "
        f"{turn['rows_without']}"
    ]
    trace = report.get("trace", {"caches": {}})
    for blocks, cache in trace["caches"].items():
        lines.append(
            f"trace of {trace['blocks']} blocks, {blocks} cached: {cache['hits']} found, "
            f"{cache['ratio']} x those of a least recently used cache"
        )
    if "fetched" in report:
        lines.append(prefix_mesh.table(report["fetched"]))
    return "\n".join(lines)


def main() -> None:
    """Print the report; exit 1 when the caches differ by more than WITHIN."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trace", type=Path, help="a Mooncake trace")
    parser.add_argument("--requests", type=int, default=2000, help="of the trace, the first ones")
    parser.add_argument("--fetch", default="", help="lengths of prompts, between commas")
    parser.add_argument(
        "--bytes-per-s", type=float, default=0.0, help="that a stage sends to others"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"second_turn": SecondTurn().figures(arguments.rounds)}
    if arguments.fetch:
        lengths = [int(length) for length in arguments.fetch.split(",")]
        asked = prefix_mesh.figures(lengths, 2 * arguments.rounds, arguments.bytes_per_s)
        report["fetched"] = asyncio.run(asked)
    if arguments.trace:
        report["trace"] = trace_figures(arguments.trace, arguments.requests)
    text = json.dumps(report, indent=2)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")
    print(text if arguments.json else table(report))
    caches = report.get("trace", {"caches": {}})["caches"].values()
    sys.exit(any(abs(cache["ratio"] - 1) > WITHIN for cache in caches))


if __name__ == "__main__":
    main()
