"""One scenario under every strategy: what is answered, how late, at what cost, and computed twice.

`python -m bench.strategies` starts a mesh of local processes for each strategy, one after another,
and plays the scenario's market and load to it; `--simulated` plays the same file to the production
cores on a virtual clock. It prints a table and JSON, says who was better than `full` in goodput or
P99, and ends with 1 when an answer is missing or differs between strategies.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from bench import mesh as meshes
from bench.scenario import Ask, Scenario, read_scenario
from bench.strategies_simulated import simulated
from bench.strategy_figures import Answer, Figures, better_than_full, computed_again, figures_of
from services.common import channels
from services.common.roles import Role
from services.common.speeds import parse_speeds
from services.controller.core.strategy import STRATEGIES

SCENARIO = Path(__file__).parent / "scenarios" / "three-nodes.yaml"
SETTINGS = {
    "SHUNT_CONTROLLER_REPLAN_STEADY_S": "2",
    "SHUNT_CONTROLLER_REPLAN_COOL_DOWN_S": "3",
}
LOOK_S = 0.25
"""Between two looks at what is paid for."""
ANSWER_TIMEOUT_S = 180.0
SECONDS_AN_HOUR = 3600.0


def body_of(ask: Ask) -> dict[str, Any]:
    """As a client of the HTTP door asks."""
    sampling = {"temperature": 0} if ask.seed is None else {"temperature": 0.9, "seed": ask.seed}
    content = "Write about these words: " + " ".join(ask.words)
    return {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": ask.output_tokens,
        "ignore_eos": True,
        **sampling,
    }


@dataclass(slots=True)
class Bill:
    """What the nodes of a mesh cost, looked at while they run."""

    stub: Any
    dollars: float = 0.0
    _at_s: float = field(default_factory=time.monotonic)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            status = await self.stub.GetStatus(controller_pb2.GetStatusRequest(), timeout=30)
            now_s = time.monotonic()
            self.dollars += status.cost_per_hour * (now_s - self._at_s) / SECONDS_AN_HOUR
            self._at_s = now_s
            await asyncio.sleep(LOOK_S)


@dataclass(slots=True)
class Load:
    """The scenario's requests, asked of one mesh."""

    client: httpx.AsyncClient
    url: str
    asks: Sequence[Ask]
    answered: Callable[[], None]
    prompt_tokens: dict[str, int] = field(default_factory=dict)
    """By generation, of those that were answered."""

    async def run(self) -> list[Answer]:
        """Begins now; returns when all are answered."""
        began_s = time.monotonic()
        return list(await asyncio.gather(*(self._one(ask, began_s) for ask in self.asks)))

    async def _one(self, ask: Ask, began_s: float) -> Answer:
        await asyncio.sleep(began_s + ask.at_s - time.monotonic())
        record, asked_s = meshes.StreamRecord(), time.monotonic()
        await meshes.stream_chat(self.client, self.url, body_of(ask), record)
        took_s = time.monotonic() - asked_s
        self.answered()
        if not record.complete or record.usage is None:
            return Answer(error=record.error or "the stream broke off")
        self.prompt_tokens[record.generation_id] = int(record.usage["prompt_tokens"])
        return Answer(took_s, int(record.usage["completion_tokens"]), record.text)


async def measured(
    directory: Path,
    scenario: Scenario,
    strategy: str,
    first: Sequence[Answer],
    answered: Callable[[], None],
) -> tuple[Figures, list[Answer]]:
    """One mesh; `first` are the answers to compare with."""
    market = directory / "market.yaml"
    market.write_text(scenario.market)
    async with (
        httpx.AsyncClient(timeout=ANSWER_TIMEOUT_S) as client,
        meshes.running(
            directory / "mesh",
            env=os.environ | SETTINGS,
            options=(
                *("--market", str(market), "--node-speeds", scenario.nodes),
                *("--strategy", strategy),
            ),
            pipelines=len(parse_speeds(scenario.nodes)),
        ) as mesh,
    ):
        services = (await mesh.status())["services"]
        address = next(s["grpc"] for s in services if s["name"] == "controller")
        async with channels.open_channel(address, Role.CONTROLLER) as channel:
            stub = controller_pb2_grpc.ControllerServiceStub(channel)
            bill, load = Bill(stub), Load(client, mesh.url(), scenario.asks, answered)
            began_s, paying = time.monotonic(), asyncio.create_task(bill.run())
            answers = await load.run()
            ran_s = time.monotonic() - began_s
            paying.cancel()
            request = controller_pb2.WatchEventsRequest(no_wait=True)
            events = [event async for event in stub.WatchEvents(request, timeout=60)]
    figures = figures_of(
        strategy,
        answers,
        within_s=scenario.within_s,
        ran_s=ran_s,
        dollars=bill.dollars,
        again=computed_again(events, load.prompt_tokens),
        first=first,
    )
    return figures, answers


async def on_real_meshes(scenario: Scenario, strategies: Sequence[str]) -> list[Figures]:
    """One after another: two would share the cores."""
    found, first = list[Figures](), list[Answer]()
    with Progress(disable=not sys.stderr.isatty()) as progress:
        for strategy in strategies:
            task = progress.add_task(strategy, total=len(scenario.asks))
            with tempfile.TemporaryDirectory() as directory:
                figures, answers = await measured(
                    Path(directory), scenario, strategy, first, partial(progress.advance, task)
                )
            found, first = [*found, figures], first or answers
    return found


def on_a_virtual_clock(scenario: Scenario, strategies: Sequence[str]) -> list[Figures]:
    found, first = list[Figures](), list[Answer]()
    for strategy in strategies:
        figures, answers = simulated(scenario, strategy, first)
        found, first = [*found, figures], first or answers
    return found


def table_of(found: Sequence[Figures]) -> Table:
    table = Table("strategy")
    for column in ("answers", "P50 s", "P99 s", "goodput t/s", "$", "sampled again", "replayed"):
        table.add_column(column, justify="right")
    for one in found:
        table.add_row(
            one.strategy,
            f"{one.completed} of {one.asked}",
            f"{one.p50_s:.1f}",
            f"{one.p99_s:.1f}",
            f"{one.goodput_tokens_per_s:.1f}",
            f"{one.dollars:.4f}",
            str(one.again.sampled),
            str(one.again.replayed),
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", type=Path, default=SCENARIO)
    parser.add_argument("--strategy", choices=STRATEGIES, action="append", help="all unless given")
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    scenario, strategies = read_scenario(chosen.scenario), chosen.strategy or list(STRATEGIES)
    if chosen.simulated:
        found = on_a_virtual_clock(scenario, strategies)
    else:
        found = asyncio.run(on_real_meshes(scenario, strategies))
    better = better_than_full(found)
    figures = {"strategies": [asdict(one) for one in found], "better_than_full": better}
    Console().print(table_of(found))
    print(json.dumps(figures, indent=2))
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(figures, indent=2) + "\n")
    if any(one.failed or one.differ for one in found):
        sys.exit("an answer is missing or differs")


if __name__ == "__main__":
    main()
