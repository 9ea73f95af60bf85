"""What prompt lookup gives: the engine with drafts over the same engine without, on the same texts.

The production scheduler over all layers of SmolLM2-135M-Instruct in one process, one thread. Texts
run in pairs, drafts first and then last, so that drift weighs on both; what both say must be equal,
id by id. A pair's ratio is time without over time with drafts, of the core that computes: a busy
machine's other processes count for nothing.

    python -m bench.lookup [--rounds 5] [--chats 50] [--json] [--out FILE]

"repeats": answers that say again what the prompt says. "new": texts drawn at a temperature at which
nothing comes back. "chats": 50 ordinary questions, every other one greedy, the rest at temperature
0.7, alone and eight at a time.
"""

from __future__ import annotations

import os

os.environ["ONEDNN_MAX_CPU_ISA"] = "DEFAULT"

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from bench.engine import read_weights
from bench.scheduled import Scheduled
from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.engine.core.scheduler import SchedulerSettings
from services.engine.native.model import load_stage
from services.model.config import parse_config
from services.tensorstore.sources.opening import default_source, open_source

KV_BLOCKS = 1024
TOKENS = 200
REPEATS_GOAL = 1.8
NEW_GOAL = 0.98
EOS = 2
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
RECORDS = "".join(
    f"{name}, {city}, {year}, {count} boats\n"
    for name, city, year, count in (
        ("Anna Lindqvist", "Bergen", 1987, 12),
        ("Pedro Alvarez", "Vigo", 1992, 31),
        ("Mary O'Connor", "Galway", 1979, 7),
        ("Jean Kerviel", "Brest", 2003, 54),
        ("Sofia Rossi", "Genoa", 1995, 23),
        ("Lars Holm", "Aarhus", 2011, 9),
    )
)
FUNCTION = """def boats_by_city(records):
    totals = {}
    for name, city, year, boats in records:
        if city not in totals:
            totals[city] = 0
        totals[city] += boats
    return sorted(totals.items(), key=lambda item: item[1])
"""
NOTICE = (
    "The harbour office opens at seven in the morning and closes at nine in the evening. Boats "
    "that come later wait at the outer wall until the pilot calls them in. Fees are paid at the "
    "office, in coins or by card, before a boat is unloaded."
)
REPEATED = (
    f"Copy the following text without any change.\n{RECORDS}{RECORDS}",
    f"Repeat this list exactly, line by line:\n{RECORDS}",
    f"Write this function again, exactly as it is:\n{FUNCTION}",
    f"Repeat the following text word for word:\n{NOTICE}",
)
MODEL = ModelRef("smollm2-135m", "bench")


class Pair:
    """The same stage under two schedulers: one that drafts, and one that does not."""

    def __init__(self) -> None:
        config, tensors = read_weights()
        parsed = parse_config(config)
        stage = load_stage(
            parsed, tensors, range(parsed.layer_count), kv_blocks=KV_BLOCKS, threads=1
        )
        self.numerics_class = stage.facts.numerics_class
        settings = SchedulerSettings(share_prefixes=False)  # each text is read whole, in both modes
        self._modes = [
            Scheduled([stage], each, KV_BLOCKS)
            for each in (settings, replace(settings, max_drafts=0))
        ]
        self._turns = 0

    def run(self, requests: Sequence[GenerationRequest], at_once: int) -> dict[str, float]:
        """Seconds of both for these requests; raises AssertionError where their ids differ."""
        self._turns += 1
        order = (0, 1) if self._turns % 2 else (1, 0)
        took_s = [0.0, 0.0]
        said: list[list[list[int]]] = [[], []]
        drafting, before = self._modes[0], self._modes[0].accepted
        steps_before = len(drafting.steps)
        for mode in order:
            took_s[mode], said[mode] = self._run(self._modes[mode], requests, at_once)
        assert said[0] == said[1], "drafts changed a text"
        steps = drafting.steps[steps_before:]
        return {
            "with_s": took_s[0],
            "without_s": took_s[1],
            "tokens": sum(map(len, said[0])),
            "drafted": sum(step.drafted for step in steps),
            "accepted": drafting.accepted - before,
        }

    def _run(
        self, mode: Scheduled, requests: Sequence[GenerationRequest], at_once: int
    ) -> tuple[float, list[list[int]]]:
        said: list[list[int]] = []
        took_s = 0.0
        mode.begin()
        for first in range(0, len(requests), at_once):
            mode.outputs.clear()
            for request in requests[first : first + at_once]:
                mode.start(replace(request, generation_id=f"{self._turns}-{request.generation_id}"))
            began_s = time.thread_time()
            mode.finish()
            took_s += time.thread_time() - began_s
            said += mode.outputs.values()
        return took_s, said


def summed(pairs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The ratio over all pairs, and how far single ones stray from it."""
    ratios = sorted(pair["without_s"] / pair["with_s"] for pair in pairs)
    total = {name: sum(pair[name] for pair in pairs) for name in pairs[0]}
    return {
        "ratio": round(total["without_s"] / total["with_s"], 3),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(ratios[0], 3),
        "ratio_max": round(ratios[-1], 3),
        "pairs": len(pairs),
        "tokens": int(total["tokens"]),
        "drafted": int(total["drafted"]),
        "accepted": int(total["accepted"]),
        "tokens_per_s_with": round(total["tokens"] / total["with_s"], 1),
        "tokens_per_s_without": round(total["tokens"] / total["without_s"], 1),
    }


def run(rounds: int, chats: int) -> dict[str, Any]:
    """All figures."""
    torch.set_num_threads(1)
    source = open_source(default_source())
    tokenizer = Tokenizer.from_str(source.files["tokenizer.json"].decode())
    source.close()
    questions = Path(__file__).with_name("chats.txt").read_text().splitlines()[:chats]

    def request(name: str, text: str, **sampling: Any) -> GenerationRequest:
        options = {"max_tokens": TOKENS, "temperature": 0.0, "eos_token_ids": (EOS,), **sampling}
        ids = tuple(tokenizer.encode(CHAT.format(text)).ids)
        return GenerationRequest(name, MODEL, ids, Sampling(**options))

    repeated = [request(f"r{i}", text) for i, text in enumerate(REPEATED)]
    new = [
        request(f"n{i}", text, temperature=1.6, seed=i, ignore_eos=True)
        for i, text in enumerate(questions[: len(REPEATED)])
    ]
    asked = [
        request(f"c{i}", text, temperature=0.7 * (i % 2), seed=i)
        for i, text in enumerate(questions)
    ]
    pair = Pair()
    pair.run(repeated[:1], 1)  # warms up
    figures: dict[str, dict[str, Any]] = {}
    for name, requests in (("repeats", repeated), ("new", new)):
        for at_once in (1, len(requests)):
            figures[f"{name}_{at_once}"] = summed(
                [pair.run(requests, at_once) for _ in range(rounds)]
            )
    figures["chats_1"] = summed([pair.run([one], 1) for one in asked])
    eights = [asked[first : first + 8] for first in range(0, len(asked), 8)]
    figures["chats_8"] = summed([pair.run(eight, 8) for eight in eights])
    return {
        "numerics_class": pair.numerics_class,
        "goals": {"repeats_1": REPEATS_GOAL, "new_1": NEW_GOAL},
        "figures": figures,
        "reached": figures["repeats_1"]["ratio"] >= REPEATS_GOAL
        and figures["new_1"]["ratio"] >= NEW_GOAL,
    }


def table(report: dict[str, Any]) -> str:
    """The figures, a line each."""
    lines = [f"{report['numerics_class']}; time without drafts over time with them"]
    for name, figure in report["figures"].items():
        goal = report["goals"].get(name)
        lines.append(
            f"{name}: {figure['ratio']} x{f' (goal {goal})' if goal else ''}, single pairs "
            f"{figure['ratio_min']} to {figure['ratio_max']}; {figure['accepted']} of "
            f"{figure['drafted']} drafts right in {figure['tokens']} tokens; "
            f"{figure['tokens_per_s_with']} over {figure['tokens_per_s_without']} tokens/s"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the report; exit 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chats", type=int, default=50)
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    report = run(arguments.rounds, arguments.chats)
    text = json.dumps(report, indent=2)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")
    print(text if arguments.json else table(report))
    sys.exit(0 if report["reached"] else 1)


if __name__ == "__main__":
    main()
