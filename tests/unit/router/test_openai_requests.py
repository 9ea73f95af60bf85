from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import InvalidArgument
from services.router.openai_requests import parse_chat


def _chat(message: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hi", **message}], **more}


@pytest.mark.parametrize(
    "body",
    [
        _chat({"tool_calls": None, "audio": None}),
        _chat({"content": [{"type": "text", "text": "hi", "cache_control": None}]}),
        _chat({}, stream=True, stream_options={"include_usage": None, "else": None}),
        _chat({}, tools=None, anything=None),
    ],
)
def test_null_is_absent_wherever_it_stands(body: dict[str, Any]) -> None:
    assert parse_chat(body).ask.prompt


def test_what_is_not_supported_is_blamed_and_not_the_null_beside_it() -> None:
    with pytest.raises(InvalidArgument, match="tool_calls"):
        parse_chat(_chat({"audio": None, "tool_calls": [1]}))
