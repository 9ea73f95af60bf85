"""What the simulator makes of a load is near what this mesh does; how near, `make bench-fidelity`
measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import mesh as meshes
from bench.fidelity import Load, compared, recorded
from simulator.fleet.recording import read_recording

LOAD = Load(14.0, 2.0, seed=7)


@pytest.mark.timeout(400)
async def test_a_recorded_load_is_played_as_it_was(ready: meshes.Mesh, tmp_path: Path) -> None:
    file = tmp_path / "recording.jsonl"
    await recorded(ready, file, LOAD, ())
    asked = read_recording(file).requests
    assert [one.outcome for one in asked] == ["finished"] * 28
    late = sum(one.arrival_s >= LOAD.duration_s / 2 for one in asked)
    replay = (await compared(file))["replay"]
    assert (replay["requests"], replay["finished"]) == (late, [late, late])
    assert replay["moved"] == [0, 0]
    assert abs(replay["throughput_bias"]) < 0.5
    was_s, is_s = replay["metrics"]["e2e_s"]["p50"]
    assert was_s / 4 < is_s < 4 * was_s
