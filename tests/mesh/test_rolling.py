from __future__ import annotations

import pytest

from bench import mesh as meshes
from bench import rolling


@pytest.mark.timeout(400)
async def test_nobody_notices_a_rolling_restart_of_everything(ready: meshes.Mesh) -> None:
    report = await rolling.run(ready)
    print(report)
    assert report["failures"] == []
    assert report["differences"] == []
    assert report["restarted_engines"] == 4
    assert report["handovers"] >= 4, "an engine that was told to stop handed nothing over"
    assert report["pipelines_lost"] == 0
    assert report["resumes"] > 0, "no answer was longer than a drain"
    assert report["answers"]["resuming"] >= rolling.LONG + rolling.SHORT
    assert report["answers"]["plain"] >= rolling.PLAIN
