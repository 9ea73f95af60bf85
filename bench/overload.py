"""Far more requests than a mesh can answer: what is accepted is answered, the rest told so at once.

`python -m bench.overload` starts a mesh of its own with two tenants and prints JSON:

- `capacity`: answers a second while as many ask as can be served, none of them with a deadline;
- `overload`: ten times as many requests a second, for a minute, each with a deadline to its first
  token: how many were accepted, answered and refused, goodput over capacity, how soon a refusal
  was at its client's machine (`bench.arrival`), at the client, which shares that machine's cores
  with the mesh, and made by its router, how far predictions of first tokens were off, what the
  client had of the cores itself, and how late it was for its own moments;
- `tenants`: first tokens of one that asks now and then, alone and beside one that floods;
- `abandoned`: the first token of a live request behind streams that were opened and closed.

`--parts` leaves parts out; capacity, by which the others ask, is always found. `--node-speeds 1:1`
has one pipeline of two stages: with more engines than cores whoever asks alone has those that the
engines of another pipeline take beside a flood, and the wait for a core is no wait for a turn.

Capacity and goodput are rates of a mesh that has been busy for as long as an answer takes: one that
begins empty reads a batch of prompts whose answers come behind the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from bench import crowd, written
from bench import mesh as meshes
from services.cli.layout import NODE_SPEEDS

ANSWER_TOKENS = 64
PROMPT_WORDS = 120
DEADLINE_MS = 4000
QUIET_SHARE = 0.1
"""Of the capacity: what the tenant that asks now and then asks for."""
FLOOD = 10.0
"""Times the capacity."""
PARTS = ("overload", "tenants", "abandoned")
WORDS = ("sea", "wind", "boat", "stone", "light", "north", "river", "salt", "rope", "night")


class Window(NamedTuple):
    """Of a load, the part that counts, in seconds from its start."""

    from_s: float
    until_s: float


@dataclass
class Load:
    """Requests and what became of them."""

    answers: list[crowd.Answer] = field(default_factory=list)
    asked_s: list[float] = field(default_factory=list)
    """When each began, from the start."""
    late_s: list[float] = field(default_factory=list)
    """By how much each began later than it was to: the client had no core."""

    def rate(self, from_s: float, until_s: float) -> float:
        """Answers a second between these moments, each counted as far as it came in between."""
        done = 0.0
        for asked_s, answer in zip(self.asked_s, self.answers, strict=True):
            first_s, end_s = asked_s + answer.first_s, asked_s + answer.took_s
            if answer.outcome == "answered":
                within_s = min(end_s, until_s) - max(first_s, from_s)
                done += max(0.0, within_s) / max(end_s - first_s, 1e-9)
        return done / (until_s - from_s)

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(answer.outcome for answer in self.answers)

    @property
    def answered(self) -> list[crowd.Answer]:
        return [answer for answer in self.answers if answer.outcome == "answered"]

    @property
    def refused(self) -> list[crowd.Answer]:
        return [answer for answer in self.answers if answer.outcome == "refused"]


class Asker:
    """Sends requests to one router; no two prompts begin alike."""

    def __init__(self, port: int, seed: int, answer_tokens: int) -> None:
        self._port = port
        self._random = random.Random(seed)
        self._answer_tokens = answer_tokens

    async def ask(self, headers: Mapping[str, str]) -> crowd.Answer:
        words = (self._random.choice(WORDS) for _ in range(PROMPT_WORDS))
        body = {
            "model": meshes.MODEL,
            "prompt": f"{self._random.random()} {' '.join(words)}",
            "max_tokens": self._answer_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        return await crowd.ask("127.0.0.1", self._port, body, headers)

    async def closed(self, streams: int, for_s: float, headers: Mapping[str, str]) -> Load:
        """So many at a time, each behind its last."""
        load, began_s = Load(), time.monotonic()

        async def again() -> None:
            while (asked_s := time.monotonic() - began_s) < for_s:
                answer = await self.ask(headers)
                load.asked_s.append(asked_s)
                load.answers.append(answer)

        await asyncio.gather(*(again() for _ in range(streams)))
        return load

    async def open(self, a_second: float, for_s: float, headers: Mapping[str, str]) -> Load:
        """As many a second, whatever becomes of them, at random moments."""
        load, began_s, due_s, tasks = Load(), time.monotonic(), 0.0, []
        while (due_s := due_s + self._random.expovariate(a_second)) < for_s:
            await asyncio.sleep(max(0.0, began_s + due_s - time.monotonic()))
            load.asked_s.append(time.monotonic() - began_s)
            load.late_s.append(load.asked_s[-1] - due_s)
            tasks.append(asyncio.create_task(self.ask(headers)))
        load.answers = list(await asyncio.gather(*tasks))
        return load


def quantile(values: Sequence[float], share: float) -> float | None:
    """None of nothing."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def refusals(log: Path) -> list[float]:
    """Seconds that a router had each request that it has refused for the load so far."""
    lines = (json.loads(line) for line in log.read_text().splitlines() if '"status": 429' in line)
    return [line["duration_s"] for line in lines]


async def overloaded(
    asker: Asker, capacity: float, window: Window, headers: Mapping[str, str], log: Path
) -> dict[str, Any]:
    """The report of ten times the capacity; `log` is the router's."""
    within = {**headers, "x-shunt-deadline-ms": str(DEADLINE_MS)}
    spent_s, before = time.process_time(), len(refusals(log))
    load = await asker.open(FLOOD * capacity, window.until_s, within)
    spent_s = time.process_time() - spent_s
    in_router_s = refusals(log)[before:]
    outcomes, answered, refused = load.outcomes, load.answered, load.refused
    accepted = len(load.answers) - len(refused)
    return {
        "requests": len(load.answers),
        "accepted": accepted,
        "answered": len(answered),
        "refused": len(refused),
        "failures": {k: n for k, n in outcomes.items() if k not in ("answered", "refused")},
        "goodput_over_capacity": round(load.rate(*window) / capacity, 3),
        "client_cpu_s": round(spent_s, 2),
        "client_late_s": {
            "median": quantile(load.late_s, 0.5),
            "p99": quantile(load.late_s, 0.99),
        },
        "refused_in_s": {
            "median": quantile([a.replied_s for a in refused], 0.5),
            "p99": quantile([a.replied_s for a in refused], 0.99),
        },
        "refused_as_seen_s": {
            "median": quantile([a.took_s for a in refused], 0.5),
            "p99": quantile([a.took_s for a in refused], 0.99),
        },
        "refused_in_router_s": {
            "median": quantile(in_router_s, 0.5),
            "p99": quantile(in_router_s, 0.99),
        },
        "first_token_s": {
            "median": quantile([a.first_s for a in answered], 0.5),
            "p99": quantile([a.first_s for a in answered], 0.99),
            "within_deadline": sum(a.first_s * 1000 <= DEADLINE_MS for a in answered),
        },
    }


async def two_tenants(
    quiet: Asker, flood: Asker, capacity: float, for_s: float, keys: Mapping[str, str]
) -> dict[str, Any]:
    """First tokens of the one that asks now and then."""
    rate, headers = QUIET_SHARE * capacity, bearer(keys["quiet"])
    alone = await quiet.open(rate, for_s, headers)
    flooding = asyncio.create_task(
        flood.open(
            FLOOD * capacity,
            for_s + 10,
            {**bearer(keys["flood"]), "x-shunt-deadline-ms": str(DEADLINE_MS)},
        )
    )
    await asyncio.sleep(10)
    beside = await quiet.open(rate, for_s, headers)
    flooded = await flooding
    first_s = {
        name: {
            "requests": len(load.answers),
            "answered": len(load.answered),
            "median": quantile([a.first_s for a in load.answered], 0.5),
            "p99": quantile([a.first_s for a in load.answered], 0.99),
        }
        for name, load in (("alone", alone), ("beside_a_flood", beside))
    }
    alone_s, beside_s = first_s["alone"]["p99"], first_s["beside_a_flood"]["p99"]
    ratio = round(beside_s / alone_s, 2) if alone_s and beside_s else None
    return {**first_s, "p99_ratio": ratio, "flood_answered": len(flooded.answered)}


async def abandoned(
    asker: Asker, streams: int, port: int, headers: Mapping[str, str]
) -> dict[str, Any]:
    """The first token of a live request behind so many streams that were left."""
    async with AsyncExitStack() as left:
        begun = asyncio.Event()
        tasks = [asyncio.create_task(_leave(port, headers, begun, left)) for _ in range(streams)]
        results = Counter(await asyncio.gather(*tasks))
    began_s = time.monotonic()
    live = await asker.ask(headers)
    return {
        "streams": streams,
        "left": dict(results),
        "live": live.outcome,
        "first_token_s": round(live.first_s, 3),
        "took_s": round(time.monotonic() - began_s, 3),
    }


async def _leave(
    port: int, headers: Mapping[str, str], begun: asyncio.Event, left: AsyncExitStack
) -> str:
    """Asks for a long answer, and is gone once the block that holds them all ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    left.callback(writer.close)
    payload = json.dumps(
        {
            "model": meshes.MODEL,
            "prompt": "Count.",
            "max_tokens": 400,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()
    given = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(
        f"POST /v1/completions HTTP/1.1\r\nHost: overload\r\n{given}"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n".encode()
        + payload
    )
    return (await reader.readline()).split()[1].decode()


async def prediction_errors(url: str) -> dict[str, float]:
    """Shares of the first tokens that took so many times what was predicted, or less."""
    async with httpx.AsyncClient(timeout=60) as client:
        text = (await client.get(f"{url}/metrics")).text
    name = "shunt_router_first_token_over_predicted_bucket"
    counts = {
        bound: float(count)
        for bound, count in re.findall(rf'{name}{{le="([^"]+)"[^}}]*}} (\S+)', text)
    }
    total = counts.get("+Inf", 0.0)
    return {bound: round(count / total, 3) for bound, count in counts.items()} if total else {}


async def run(
    mesh: meshes.Mesh, admin_port: int, keys: Mapping[str, str], options: argparse.Namespace
) -> dict[str, Any]:
    """All parts, one after another."""
    port, headers = mesh.http_port, bearer(keys["flood"])
    asker = Asker(port, 1, options.answer_tokens)
    alone = Window(options.fill_s, options.fill_s + options.alone_s)
    load = await asker.closed(options.streams, alone.until_s, headers)
    capacity = load.rate(*alone)
    report: dict[str, Any] = {
        "answer_tokens": options.answer_tokens,
        "deadline_ms": DEADLINE_MS,
        "capacity_a_second": round(capacity, 2),
    }
    async with crowd.counted_events(mesh) as events:
        if "overload" in options.parts:
            window = Window(options.fill_s, options.fill_s + options.overload_s)
            log = mesh.data_dir / "logs" / "router-0.log"
            report["overload"] = await overloaded(asker, capacity, window, headers, log)
            report["predicted"] = await prediction_errors(f"http://127.0.0.1:{admin_port}")
        if "tenants" in options.parts:
            quiet = Asker(port, 2, options.answer_tokens)
            report["tenants"] = await two_tenants(quiet, asker, capacity, options.tenants_s, keys)
        if "abandoned" in options.parts:
            report["abandoned"] = await abandoned(asker, options.abandoned, port, headers)
    report["epochs_granted"] = events["generation_granted"]
    report["nodes_lost"] = events["node_lost"]
    return report


async def _key(file: Path, tenant: str) -> str:
    made = await meshes.run_shunt(
        "keys", "create", "--tenant", tenant, "--file", str(file), "--json", timeout_s=60.0
    )
    key: str = json.loads(made)["key"]
    return key


async def _main(options: argparse.Namespace) -> int:
    admin_port = meshes.free_ports(1)
    env = {
        **os.environ,
        "SHUNT_ROUTER_MAX_STREAMS": str(2 * options.abandoned),
        "SHUNT_ROUTER_ADMIN_PORT": str(admin_port),
    }
    with tempfile.TemporaryDirectory(prefix="shunt-overload-") as directory:
        file, data_dir = Path(directory) / "keys.json", Path(directory) / "data"
        keys = {name: await _key(file, name) for name in ("quiet", "flood")}
        speeds: str = options.node_speeds
        given = ("--keys", str(file), "--node-speeds", speeds)
        pipelines = speeds.count(",") + 1
        async with meshes.running(data_dir, env=env, options=given, pipelines=pipelines) as mesh:
            report = await run(mesh, admin_port, keys, options)
    written.show(report, options.out)
    failures = report.get("overload", {}).get("failures")
    return 1 if failures or report["epochs_granted"] else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answer-tokens", type=int, default=ANSWER_TOKENS)
    parser.add_argument("--streams", type=int, default=32, help="at once, to find the capacity")
    parser.add_argument("--fill-s", type=float, default=30.0, help="before anything counts")
    parser.add_argument("--alone-s", type=float, default=30.0)
    parser.add_argument("--overload-s", type=float, default=60.0)
    parser.add_argument("--tenants-s", type=float, default=40.0)
    parser.add_argument("--abandoned", type=int, default=2000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--node-speeds", default=NODE_SPEEDS, help="as in `shunt up`")
    parser.add_argument("--quick", action="store_true", help="all of it, a third as long")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.quick:
        for name in ("fill_s", "alone_s", "overload_s", "tenants_s", "abandoned"):
            setattr(given, name, getattr(given, name) // 3)
    sys.exit(asyncio.run(_main(given)))
