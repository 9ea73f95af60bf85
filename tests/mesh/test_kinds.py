from __future__ import annotations

from bench import kinds
from bench import mesh as meshes


async def test_an_answer_of_any_kind_is_the_same_through_kills(ready: meshes.Mesh) -> None:
    report = await kinds.run(ready, kills=4, seed=3)
    assert report["failures"] == []
    assert report["differences"] == [], report["differences"]
    assert report["kills"] == 4
    assert report["struck"]
    assert report["requests"] >= len(kinds.ASKED)
