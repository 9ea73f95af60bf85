"""The cluster of 1,000 nodes: what beats cost, losses at once, writes of an event, an idle day.

`python -m bench.cluster` runs the controller's core and runtime on one core, with a real journal
and without engines: nodes beat 4,000 times a second, then a hundred are lost within a second.
Prints JSON; times are of this machine, ratios and counts are what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.cluster_beats import beats
from bench.cluster_jumps import idle_day, writes_of_a_loss
from bench.cluster_mesh import WAIT_S, beat_all, mesh
from services.common import event_loop, garbage
from services.controller.core.cluster.market import NodeGone

NODES = 1000
LOST = 100
CPU_GOAL, ACTED_GOAL_S, HELD_GOAL_S, DAY_GOAL_S = 0.10, 1.0, 0.050, 60.0


class Held:
    """How long the event loop was not given back: wall time, and CPU time of it."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 0.0

    async def watch(self) -> None:
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        while True:
            await asyncio.sleep(0)
            before = wall_s, cpu_s
            wall_s, cpu_s = time.perf_counter(), time.thread_time()
            self.wall_s = max(self.wall_s, wall_s - before[0])
            self.cpu_s = max(self.cpu_s, cpu_s - before[1])


async def losses(nodes: int, lost: int) -> dict[str, float]:
    """So many nodes are lost within a second, all others beat on."""
    async with mesh(nodes) as made:
        cloud, held = made.cloud, Held()
        victims = [f"node-{number}" for number in range(2, nodes, nodes // lost)][:lost]
        ready = set(cloud.launched_s)
        beating = asyncio.create_task(beat_all(cloud.formations, WAIT_S, made.hear))
        watching = asyncio.create_task(held.watch())
        told_s = []
        began_s = time.monotonic()
        for index, victim in enumerate(victims):
            await asyncio.sleep(max(0.0, began_s + index / lost - time.monotonic()))
            cloud.formations.pop(victim)
            told_s.append(time.monotonic())
            cloud.told.put_nowait(NodeGone(victim, "exit"))
        async with asyncio.timeout(WAIT_S):
            while len(cloud.launched_s) < nodes + lost:
                await cloud.launches.wait()
        await made.until_serving()
        served_s = time.monotonic() - told_s[-1]
        await asyncio.sleep(made.runtime.cluster.settings.node_lost_s + 1.0)
        beating.cancel()
        watching.cancel()
        # Replacements are launched in the order of the losses.
        acted_s = [
            launched_s - at_s
            for launched_s, at_s in zip(
                sorted(s for name, s in cloud.launched_s.items() if name not in ready),
                told_s,
                strict=True,
            )
        ]
        said = await made.said()
    return {
        "lost": lost,
        "acted_upon_s_max": round(max(acted_s), 4),
        "serves_again_s": round(served_s, 3),
        "loop_held_s_max": round(held.wall_s, 4),
        "loop_held_cpu_s_max": round(held.cpu_s, 4),
        "falsely_lost": said["node_lost"] - lost,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--seconds", type=float, default=10.0, help="of beats")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    garbage.spare_what_stays()
    figures = {
        "nodes": chosen.nodes,
        "beats": event_loop.run(beats(chosen.nodes, chosen.seconds)),
        "losses": event_loop.run(losses(chosen.nodes, chosen.nodes // (NODES // LOST))),
        "writes": [asdict(writes_of_a_loss(n)) for n in (chosen.nodes // 10, chosen.nodes)],
        "idle_day": asdict(idle_day(chosen.nodes)),
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(text + "\n")
    missed = list(_missed(figures))
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


def _missed(figures: dict[str, Any]) -> Iterator[str]:
    beats, losses, day = figures["beats"], figures["losses"], figures["idle_day"]
    if beats["core_and_runtime_share"] > CPU_GOAL:
        yield f"beats cost more than {CPU_GOAL:.0%} of a core"
    if beats["with_grpc"]["as_engines_do"]["share"] > CPU_GOAL:
        yield f"beats and their gRPC cost more than {CPU_GOAL:.0%} of a core"
    if losses["acted_upon_s_max"] > ACTED_GOAL_S:
        yield f"a loss waited for longer than {ACTED_GOAL_S:g} s"
    if losses["loop_held_cpu_s_max"] > HELD_GOAL_S:
        yield f"the loop was held for longer than {HELD_GOAL_S * 1000:g} ms"
    if beats["falsely_lost"] or losses["falsely_lost"] or day["lost"]:
        yield "a node counted as lost that was not"
    if day["took_s"] > DAY_GOAL_S:
        yield f"an idle day took longer than {DAY_GOAL_S:g} s"
    small, large = figures["writes"]
    if (small["writes"], small["notes"]) != (large["writes"], large["notes"]):
        yield "a larger cluster writes more of an event"


if __name__ == "__main__":
    main()
