"""How far the simulator is from this machine's mesh, and the mesh from itself.

`python -m bench.fidelity` starts a mesh of two pipelines and has one load recorded twice, while a
node is killed, one has notice, and another one is killed. The profile is fitted to the first half
of one recording; its second half is played to the simulator and compared with what was recorded,
and so is the second recording's. It prints both, request by request and by percentile, and ends
with 1 where the replay is outside its bounds (docs/simulate.md).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import mesh as meshes

NOTICE_S = 20.0
READY_S = 300.0
OVERHEAD_S = 300.0
"""Of a recording beside its duration: answers that are under way, and the events."""
LEEWAY = 1.5
"""Times the difference of the two recordings that the replay may be off by, where that is more."""
RATE, FIRST, LAST = 0.03, 0.05, 0.10
"""Of throughput, medians and the latest."""


@dataclass(frozen=True, slots=True)
class Happening:
    """To the last node of a pipeline."""

    share: float
    """Of the recording, when it happens."""
    pipeline: int
    kill: bool


HAPPENINGS = (Happening(0.2, 0, True), Happening(0.6, 1, False), Happening(0.8, 0, True))


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the mesh."""

    duration_s: float
    rate_rps: float
    seed: int


def outside(accounts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Bounds that the replay does not keep, of accounts as `shunt simulate replay --json` prints
    them."""
    replay, repeated = accounts["replay"], accounts["repeated"]
    told = []
    for name in ("finished", "moved"):
        was, came = replay[name]
        if was != came:
            told.append(f"{name}: {came}, where {was} were recorded")
    biases = [("tokens/s", RATE, replay["throughput_bias"], repeated["throughput_bias"])]
    for metric in ("ttft_s", "e2e_s"):
        one, other = replay["metrics"][metric], repeated["metrics"][metric]
        biases += [
            (f"{metric} {share}", limit, one[f"{share}_bias"], other[f"{share}_bias"])
            for share, limit in (("p50", FIRST), ("p99", LAST))
        ]
    for name, limit, bias, noise in biases:
        allowed = max(limit, LEEWAY * abs(noise))
        if abs(bias) > allowed:
            told.append(f"{name}: {bias:+.1%}, where {allowed:.1%} is allowed")
    return told


async def recorded(
    mesh: meshes.Mesh, out: Path, load: Load, happenings: Sequence[Happening]
) -> None:
    """A recording of the load, while nodes go."""
    await mesh.until_ready(2, READY_S)
    told = (
        *("--out", str(out), "--duration", str(load.duration_s)),
        *("--rate", str(load.rate_rps), "--seed", str(load.seed)),
    )
    async with asyncio.TaskGroup() as tasks:
        limit_s = load.duration_s + OVERHEAD_S
        tasks.create_task(mesh.shunt("simulate", "record", *told, timeout_s=limit_s))
        for one in happenings:
            tasks.create_task(_happens(mesh, one, load.duration_s))
    await mesh.until_ready(2, READY_S)


async def _happens(mesh: meshes.Mesh, one: Happening, duration_s: float) -> None:
    await asyncio.sleep(one.share * duration_s)
    status = await mesh.until_ready(2, READY_S)
    names = sorted(pipeline["id"] for pipeline in status["pipelines"])
    stages = {pipeline["id"]: pipeline["stages"] for pipeline in status["pipelines"]}
    node = stages[names[one.pipeline % len(names)]][-1]["node"]
    if one.kill:
        await mesh.kill_node(node)
    else:
        await mesh.give_notice(node, NOTICE_S)


async def measured(data_dir: Path, out: Path, load: Load) -> dict[str, Any]:
    """Both accounts, of a mesh in the one folder; their recordings are left in the other."""
    files = [out / f"{name}.jsonl" for name in ("one", "other")]
    async with meshes.running(data_dir) as mesh:
        for file in files:
            await recorded(mesh, file, load, HAPPENINGS)
    return await compared(*files)


async def compared(one: Path, other: Path | None = None) -> dict[str, Any]:
    """A profile is fitted to the first half of the one; how its second half is played, and how the
    other's differs where there is one."""
    profile = one.with_suffix(".yaml")
    fit = ("simulate", "fit", str(one), "--out", str(profile))
    print(await meshes.run_shunt(*fit, timeout_s=OVERHEAD_S), file=sys.stderr)
    against = () if other is None else ("--against", str(other))
    replay = ("simulate", "replay", str(one), "--profile", str(profile), *against)
    print(await meshes.run_shunt(*replay, timeout_s=OVERHEAD_S), file=sys.stderr)
    told = await meshes.run_shunt(*replay, "--json", timeout_s=OVERHEAD_S)
    accounts: dict[str, Any] = json.loads(told)
    return accounts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="of each recording")
    parser.add_argument("--rate", type=float, default=1.5, help="requests a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for the recordings")
    chosen = parser.parse_args()
    load = Load(chosen.seconds, chosen.rate, chosen.seed)
    with tempfile.TemporaryDirectory(prefix="shunt-fidelity-") as root:
        place = chosen.keep or Path(root)
        place.mkdir(parents=True, exist_ok=True)
        accounts = asyncio.run(measured(Path(root) / "mesh", place, load))
    wrong = outside(accounts)
    print(json.dumps({**accounts, "outside": wrong}, indent=1))
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
