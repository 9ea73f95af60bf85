"""Kills engines under answers of every kind and compares all that a reader got.

`python -m bench.kinds --kills 50` starts a mesh of its own and prints JSON. Structured answers,
tool calls (one that is required, two beside one another, one among text), four choices at once, log
probabilities, and log probabilities of a prompt that is echoed run beside one another; a random
engine of a pipeline that carries one of them is killed. What came of each must be, field by field,
what the same request brought with nothing in its way: texts, calls and their arguments, log
probabilities to the last digit, usage. Names that are drawn (of generations and
calls) may differ between two requests, and within one stream may not change.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.progress import Progress

from bench import mesh as meshes
from bench import written
from bench.bounds import rate_bound_95

BEGUN = 4
"""Events of an answer before its engines are worth a kill."""
KILLS_A_ROUND = 3
"""Of the engines under one answer: more would make the longest ones of it all that is struck."""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "maxLength": 24},
                    "days": {"type": "array", "items": {"enum": ["mon", "tue"]}, "minItems": 9},
                },
                "required": ["place", "days"],
            },
        },
    }
    for name in ("weather", "tides")
]
FORM = {
    "type": "object",
    "properties": {
        "names": {
            "type": "array",
            "items": {"type": "string", "maxLength": 10},
            "minItems": 12,
            "maxItems": 12,
        }
    },
    "required": ["names"],
    "additionalProperties": False,
}
SEEDED = {"temperature": 0.9, "seed": 11}


def _chat(text: str, **more: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": text}], "max_tokens": 200, "temperature": 0}
    return asked | more


def _schema() -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": FORM, "strict": True}}


ASKED: Mapping[str, tuple[str, dict[str, Any]]] = {
    "structured": ("chat/completions", _chat("Name twelve birds.", response_format=_schema())),
    "structured, sampled": (
        "chat/completions",
        _chat("Name twelve fish.", response_format=_schema(), **SEEDED),
    ),
    "tool, required": (
        "chat/completions",
        _chat("What is the weather in Oslo?", tools=TOOLS, tool_choice="required", **SEEDED),
    ),
    "tool, named": (
        "chat/completions",
        _chat(
            "When is high water in Brest?",
            tools=TOOLS,
            tool_choice={"type": "function", "function": {"name": "tides"}},
        ),
    ),
    "tool, auto": ("chat/completions", _chat("Tell me of the sea.", tools=TOOLS, **SEEDED)),
    "four choices": (
        "chat/completions",
        _chat("Tell a tale of a fox.", n=4, logprobs=True, top_logprobs=2, **SEEDED),
    ),
    "log probabilities": (
        "chat/completions",
        _chat("Tell a tale of a goose.", logprobs=True, top_logprobs=5, repetition_penalty=1.05),
    ),
    "echo": (
        "completions",
        {"prompt": "Once upon a time", "echo": True, "logprobs": 3, "max_tokens": 150, **SEEDED},
    ),
}
"""Route and body of each kind."""


@dataclass
class Choice:
    """What came of one choice, joined: how much of it an event has depends on the pace."""

    text: str = ""
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    """Name and arguments of each call."""
    call_ids: dict[int, set[str]] = field(default_factory=dict)
    logprobs: dict[str, list[Any]] = field(default_factory=dict)
    finish_reason: str | None = None

    def take(self, choice: Mapping[str, Any]) -> None:
        """Takes what an event has of it."""
        delta = choice.get("delta") or {"content": choice.get("text")}
        self.text += delta.get("content") or ""
        for call in delta.get("tool_calls") or ():
            if "id" in call:
                self.call_ids.setdefault(call["index"], set()).add(call["id"])
            known = self.calls.setdefault(call["index"], {})
            for name, piece in call["function"].items():
                known[name] = known.get(name, "") + piece
        for name, values in (choice.get("logprobs") or {}).items():
            self.logprobs.setdefault(name, []).extend(values or ())
        self.finish_reason = choice.get("finish_reason") or self.finish_reason

    @property
    def what(self) -> Any:
        """All that must be equal."""
        return (self.text, self.calls, self.logprobs, self.finish_reason)


@dataclass
class Answer:
    """What came of a request, less what is drawn for each."""

    generation_id: str = ""
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Any = None
    error: str = ""
    done: bool = False
    events: int = 0

    def take(self, event: Mapping[str, Any]) -> None:
        """Takes one event of the stream."""
        self.events += 1
        if "error" in event:
            self.error = json.dumps(event["error"])
        if usage := event.get("usage"):
            usage.pop("prompt_tokens_details", None)
            self.usage = usage
        for choice in event.get("choices", ()):
            self.choices.setdefault(choice["index"], Choice()).take(choice)

    @property
    def one_id_a_call(self) -> bool:
        """No call changed its name in mid-stream."""
        ids = [ids for choice in self.choices.values() for ids in choice.call_ids.values()]
        return all(len(one) == 1 for one in ids)

    @property
    def what(self) -> Any:
        """All that must be equal."""
        choices = {index: choice.what for index, choice in self.choices.items()}
        return (choices, self.usage, self.error, self.done)


async def ask(client: httpx.AsyncClient, url: str, kind: str, answer: Answer) -> None:
    """Streams a request of a kind into the answer; a failure is its `error`."""
    route, body = ASKED[kind]
    asked = {"model": meshes.MODEL, "stream": True, "stream_options": {"include_usage": True}}
    try:
        async with client.stream("POST", f"{url}/v1/{route}", json=asked | body) as response:
            answer.generation_id = response.headers.get("x-generation-id", "")
            if response.status_code != 200:
                answer.error = f"{response.status_code} {(await response.aread()).decode()}"
                return
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    answer.done = True
                elif line.startswith("data:"):
                    answer.take(json.loads(line[5:]))
    except httpx.HTTPError as error:
        answer.error = repr(error)


class Round:
    """All kinds at once."""

    def __init__(self, client: httpx.AsyncClient, mesh: meshes.Mesh, kinds: Sequence[str]) -> None:
        self._mesh = mesh
        self.answers = {kind: Answer() for kind in kinds}
        self._tasks = [
            asyncio.create_task(ask(client, mesh.url(index % mesh.routers), kind, answer))
            for index, (kind, answer) in enumerate(self.answers.items())
        ]

    @property
    def over(self) -> bool:
        """Nothing is streamed any more."""
        return all(task.done() for task in self._tasks)

    async def end(self) -> None:
        """Returns when it is over."""
        await asyncio.gather(*self._tasks)

    async def kill(self, randomness: random.Random, struck: Counter[str]) -> list[str] | None:
        """Kills an engine of the pipeline that carries what was struck least so far, once it has
        begun: the kinds that it carried; None where nothing is left to strike."""
        while not self.over:
            status = await self._mesh.status()
            carried: dict[str, list[str]] = {}
            where = {one["id"]: one["pipeline"] for one in status["generations"]}
            for kind, answer in self.answers.items():
                pipeline = where.get(answer.generation_id)
                if pipeline and answer.events >= BEGUN and not answer.done:
                    carried.setdefault(pipeline, []).append(kind)
            ready = [p for p in status["pipelines"] if p["state"] == "ready" and p["id"] in carried]
            if ready:
                pipeline = min(ready, key=lambda one: min(struck[k] for k in carried[one["id"]]))
                node = randomness.choice(pipeline["stages"])["node"]
                pid = next(one["pid"] for one in status["nodes"] if one["id"] == node)
                os.kill(pid, signal.SIGKILL)
                return carried[pipeline["id"]]
            await asyncio.sleep(0.05)
        return None


async def run(
    mesh: meshes.Mesh, *, kills: int, seed: int, kinds: Sequence[str] = tuple(ASKED)
) -> dict[str, Any]:
    """The report; the mesh has two pipelines and is left with them."""
    randomness = random.Random(seed)
    struck: Counter[str] = Counter()
    failed: list[str] = []
    different: list[str] = []
    done = requests = 0
    async with httpx.AsyncClient(timeout=300.0) as client:
        baseline = Round(client, mesh, kinds)
        await baseline.end()
        lacking = {k: a.error for k, a in baseline.answers.items() if a.error or not a.done}
        if lacking:
            raise RuntimeError(f"with nothing in its way: {lacking}")
        with Progress(disable=not sys.stderr.isatty()) as progress:
            bar = progress.add_task("kills", total=kills)
            while done < kills:
                await mesh.until_ready(2)
                kinds = sorted(kinds, key=lambda kind: struck[kind])
                round_ = Round(client, mesh, kinds)
                for _ in range(min(KILLS_A_ROUND, kills - done)):
                    carried = await round_.kill(randomness, struck)
                    if carried is None:
                        break
                    done += 1
                    struck.update(carried)
                    progress.advance(bar)
                    await mesh.until_ready(2)
                await round_.end()
                for kind, answer in round_.answers.items():
                    requests += 1
                    if answer.error or not answer.done:
                        failed.append(f"{kind}: {answer.error or 'cut short'}")
                    elif answer.what != baseline.answers[kind].what:
                        different.append(f"{kind}: {answer.generation_id}")
                    elif not answer.one_id_a_call:
                        different.append(f"{kind}: a call's id changed")
        await mesh.until_ready(2)
    return {
        "kills": done,
        "requests": requests,
        "struck": dict(struck),
        "failures": failed,
        "differences": different,
        "failure_rate_bound_95": rate_bound_95(len(failed) + len(different), requests),
    }


async def _main(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="shunt-kinds-") as directory:
        async with meshes.running(Path(directory) / "mesh", routers=2) as mesh:
            report = await run(mesh, kills=arguments.kills, seed=arguments.seed)
    written.show(report, arguments.out)
    return 1 if report["failures"] or report["differences"] else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path)
    sys.exit(asyncio.run(_main(parser.parse_args())))
