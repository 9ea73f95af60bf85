from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from services.common.generation import CallForm, Thinking
from services.model.calling import Calling, calling_of, thinking_of
from services.model.chat import ChatTemplate, Message
from services.model.tools import Tool, ToolCall
from services.model.written import origin_of
from tests.tiny_model import CHAT_TEMPLATE

TEMPLATES = Path(__file__).parents[2] / "chat_templates"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
LOOK = Tool("look", "Looks\n<there>", SCHEMA)
CALL = ToolCall("call_0123456789", "look", '{"at": "é \\"x\\"", "n": [1]}')
TURNS = (
    Message("user", "Hi"),
    Message("assistant", "", (CALL,)),
    Message("tool", "all <b>fine</b>", call_id=CALL.id),
)


def template(name: str) -> ChatTemplate:
    return ChatTemplate((TEMPLATES / f"{name}.jinja").read_text(), TOKENS)


def rendered(source: ChatTemplate, turns: tuple[Message, ...], tools: tuple[Tool, ...] = ()) -> str:
    told, beside = calling_of(source).told(turns, tools, {})
    return source.render(told, 0, beside)


@pytest.mark.parametrize(
    ("name", "calling"),
    [
        ("tools_hermes", Calling(CallForm.HERMES, own=False)),
        ("tools_headers", Calling(CallForm.LLAMA, own=False)),
        ("tools_inst", Calling(CallForm.MISTRAL, own=False, arguments_as_text=True)),
        ("chatml_thinking", Calling(CallForm.HERMES, own=True)),
        ("inst_tokens", Calling(CallForm.HERMES, own=True)),
    ],
)
def test_a_template_tells_how_its_model_calls_tools(name: str, calling: Calling) -> None:
    assert calling_of(template(name)) == calling


def test_a_form_that_is_not_read_here_is_not_taken_for_another() -> None:
    source = (TEMPLATES / "tools_hermes.jinja").read_text()
    other = ChatTemplate(source.replace("Functions:", "Answer as <function=name>"), TOKENS)
    assert calling_of(other).own
    silent = ChatTemplate(source.replace("tool | tojson", "''"), TOKENS)
    assert calling_of(silent).own


def test_a_newer_mistral_names_a_call_before_its_arguments() -> None:
    source = (TEMPLATES / "tools_inst.jinja").read_text() + "{# [TOOL_CALLS]name[ARGS] #}"
    assert calling_of(ChatTemplate(source, TOKENS)).form is CallForm.MISTRAL_ARGS


@pytest.mark.parametrize("name", ["tools_hermes", "tools_headers", "tools_inst"])
def test_a_conversation_with_tools_is_rendered_as_transformers_does(name: str) -> None:
    """The oracle is given what its users give it."""
    as_text = name == "tools_inst"
    call_id = "a1b2c3d4e" if as_text else CALL.id
    function = {
        "name": CALL.name,
        "arguments": CALL.arguments if as_text else json.loads(CALL.arguments),
    }
    conversation: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": call_id, "type": "function", "function": function}],
        },
        {"role": "tool", "name": "look", "tool_call_id": call_id, "content": "all <b>fine</b>"},
    ]
    described = {"name": "look", "description": LOOK.description, "parameters": SCHEMA}
    (wanted,), _ = render_jinja_template(
        [conversation],
        tools=[{"type": "function", "function": described}],
        chat_template=(TEMPLATES / f"{name}.jinja").read_text(),
        add_generation_prompt=True,
        **TOKENS,
    )
    found = rendered(template(name), TURNS, (LOOK,))
    if as_text:
        short = found.split('"call_id": "')[1][:9]
        assert short.isalnum()
        found = found.replace(short, call_id)
    assert found == wanted


def test_a_template_without_tools_is_told_of_them_in_the_systems_turn() -> None:
    source = ChatTemplate(CHAT_TEMPLATE, {})
    turns = (Message("system", "Be brief."), *TURNS, Message("tool", "2", call_id=CALL.id))
    prompt = rendered(source, turns, (LOOK,))
    head, user, assistant, answer = prompt.split("<|im_start|>")[1:5]
    assert head.startswith("system\nBe brief.\n\n# Tools")
    assert json.dumps(LOOK.described, ensure_ascii=False) in head
    assert user == "user\nHi<|im_end|>\n"
    called = '{"name": "look", "arguments": {"at": "é \\"x\\"", "n": [1]}}'
    assert assistant == f"assistant\n<tool_call>\n{called}\n</tool_call><|im_end|>\n"
    answers = [f"<tool_response>\n{text}\n</tool_response>" for text in ("all <b>fine</b>", "2")]
    assert answer == "user\n" + "\n".join(answers) + "<|im_end|>\n"
    told, _ = calling_of(source).told(turns, (LOOK,), {})
    content = told[0].content
    assert not any(origin_of(content)[content.index("Looks") :][:5])
    assert all(origin_of(content)[content.index("<tool_call>") :][:11])


def test_where_no_system_may_speak_the_users_first_turn_tells_of_tools() -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}"
    source = ChatTemplate(refusing + CHAT_TEMPLATE, {})
    assert not calling_of(source).takes_system
    prompt = rendered(source, TURNS, (LOOK,))
    assert prompt.startswith("<|im_start|>user\n# Tools")
    assert "\n\nHi<|im_end|>" in prompt


@pytest.mark.parametrize(
    ("source", "options", "thinking"),
    [
        (CHAT_TEMPLATE, {}, Thinking.NONE),
        ((TEMPLATES / "chatml_thinking.jinja").read_text(), {}, Thinking.MAY),
        (
            (TEMPLATES / "chatml_thinking.jinja").read_text(),
            {"enable_thinking": False},
            Thinking.NONE,
        ),
        ((TEMPLATES / "reasoning.jinja").read_text(), {}, Thinking.BEGUN),
        ("{# <think> #}{{ messages[0].content }}", {}, Thinking.MAY),
    ],
)
def test_whether_an_answer_begins_with_thoughts_is_seen_in_the_prompt(
    source: str, options: dict[str, Any], thinking: Thinking
) -> None:
    made = ChatTemplate(source, TOKENS)
    told, beside = calling_of(made).told((Message("user", "say <think>"),), (), options)
    assert thinking_of(made, made.render(told, 0, beside)) is thinking
