"""Prompts that are much work, or too much."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from services.router.model import Prompt, ServedModel
from tests.tiny_model import MAX_POSITIONS


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each prompt that was tokenised: whether the event loop's thread did it."""
    made: list[bool] = []
    prompt = ServedModel.prompt

    def watched(self: ServedModel, *arguments: Any) -> Prompt:
        made.append(threading.current_thread() is threading.main_thread())
        return prompt(self, *arguments)

    monkeypatch.setattr(ServedModel, "prompt", watched)
    return made


def _turn(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("body", "on_the_loop"),
    [
        ({"messages": [_turn("hi")]}, True),
        ({"messages": [_turn("capital " * 2100)]}, False),
        ({"messages": [_turn("a")] * 70}, False),
        ({"prompt": "capital " * 2100}, False),
    ],
)
async def test_a_long_prompt_is_made_beside_the_event_loop(
    http: httpx.AsyncClient, threads: list[bool], body: dict[str, Any], on_the_loop: bool
) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    await http.post(path, json={"model": "tiny", "max_tokens": 1, **body})
    assert threads == [on_the_loop]


@pytest.mark.parametrize(
    ("path", "prompt", "param"),
    [
        ("/v1/chat/completions", {"messages": [_turn("x" * 20)] * 2000}, "messages"),
        ("/v1/chat/completions", {"messages": [_turn("é" * 20_000)]}, "messages"),
        ("/v1/completions", {"prompt": "x" * 1_000_000}, "prompt"),
        ("/v1/completions", {"prompt": [1] * MAX_POSITIONS}, "prompt"),
    ],
)
async def test_a_prompt_that_cannot_fit_is_refused_before_any_work(
    http: httpx.AsyncClient,
    threads: list[bool],
    path: str,
    prompt: dict[str, Any],
    param: str,
) -> None:
    answer = await http.post(path, json={"model": "tiny", **prompt})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert threads == []
