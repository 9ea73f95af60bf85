from __future__ import annotations

import pytest

from services.common.generation import Thinking
from services.router.core.parts import Thought, joined
from services.router.core.thoughts import Thoughts


def divided(thinking: Thinking, pieces: list[str]) -> tuple[str, str]:
    thoughts, told, answer = Thoughts(thinking), [], ""
    for piece in pieces:
        parts, text = thoughts.feed(piece)
        told += parts
        answer += text
    parts, text = thoughts.end()
    thought = joined([*told, *parts])
    assert all(isinstance(part, Thought) for part in thought)
    return "".join(part.text for part in thought if isinstance(part, Thought)), answer + text


CASES = [
    (Thinking.NONE, "<think>a</think>b", "", "<think>a</think>b"),
    (Thinking.MAY, "<think>\nso </a>\n</think>\n\nyes\n", "so </a>", "yes\n"),
    (Thinking.MAY, "\n<think>so", "so", ""),
    (Thinking.MAY, "<think>\n\n</think>\n\nyes", "", "yes"),
    (Thinking.MAY, " plain <think>", "", " plain <think>"),
    (Thinking.MAY, "<thi", "", "<thi"),
    (Thinking.MAY, " \n", "", " \n"),
    (Thinking.BEGUN, "\nso <think>\n</think> yes </think>", "so <think>", "yes </think>"),
    (Thinking.BEGUN, "so \n</thin", "so \n</thin", ""),
    (Thinking.BEGUN, "</think>", "", ""),
]


@pytest.mark.parametrize(("thinking", "text", "thought", "answer"), CASES)
def test_thoughts_and_answer_are_told_apart_however_they_come(
    thinking: Thinking, text: str, thought: str, answer: str
) -> None:
    assert divided(thinking, [text]) == (thought, answer)
    assert divided(thinking, list(text)) == (thought, answer)
    for cut in range(len(text)):
        assert divided(thinking, [text[:cut], text[cut:]]) == (thought, answer)
