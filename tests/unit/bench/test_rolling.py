from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench import mesh as meshes
from bench import rolling

PIECES = 5
"""Of an answer, between which its reader goes to another router."""


@pytest.mark.parametrize("comes_on", [True, False])
async def test_an_answer_is_given_up_when_nothing_more_of_it_came_for_long(
    monkeypatch: pytest.MonkeyPatch, comes_on: bool
) -> None:
    mesh: Any = SimpleNamespace(routers=2, url=str)
    client: Any = None
    load, now_s = rolling.Load(mesh), 0.0

    async def read(_client: Any, _url: str, *asked: Any) -> meshes.StreamRecord:
        nonlocal now_s
        load.stopping = True
        record: meshes.StreamRecord = asked[-1]
        record.generation_id = "g"
        now_s += 0.6 * rolling.BACK_S
        if comes_on:
            record.arrivals_s.append(now_s)
        if len(record.arrivals_s) == PIECES:
            record.done, record.finish_reason = True, "stop"
        return record

    monkeypatch.setattr(meshes, "stream_chat", read)
    monkeypatch.setattr(meshes, "resume_stream", read)
    monkeypatch.setattr(rolling, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(rolling, "RETRY_S", 0.0)
    asked = rolling.Questions([{}], [meshes.StreamRecord(finish_reason="stop")])
    await load.resuming(client, asked, 0)
    assert (load.failed == []) is comes_on
    assert load.different == []
    assert load.answers == {"resuming": 1}
    assert load.resumes == (PIECES - 1 if comes_on else 1)
