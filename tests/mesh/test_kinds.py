from __future__ import annotations

from bench import kinds, kinds_asked
from bench import mesh as meshes


async def test_an_answer_of_any_kind_is_the_same_through_kills(ready: meshes.Mesh) -> None:
    asked = kinds_asked.plain(1)
    report = await kinds.run(ready, asked, kills=3, seed=3, readers=len(asked))
    assert report["failures"] == []
    assert report["differences"] == [], report["differences"]
    assert report["invalid"] == []
    assert report["kills"] >= 3, "one may count late, when the log tells what went on"
    assert report["requests"] >= len(asked)
