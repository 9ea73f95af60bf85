from __future__ import annotations

from bench import chaos
from bench import mesh as meshes


async def test_no_reader_notices_killed_engines(ready: meshes.Mesh) -> None:
    report = await chaos.run(ready, kills=8, solo=2, pairs=1, seed=7, max_tokens=120)
    assert report["failures"] == []
    assert report["differences"] == []
    kinds = report["kills_by_kind"]
    # Where the other pipeline is soon back there are more preludes to a solo kill.
    assert kinds.pop("prelude") >= 2
    assert kinds == {"single": 2, "solo": 2, "pair": 2}
    assert report["requests"] > 8
