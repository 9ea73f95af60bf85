"""Hostile and broken requests: always a clear 4xx, and a router that goes on."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.fake_mesh import REPLY, FakeMesh
from tests.tiny_model import MAX_POSITIONS

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def steady() -> AsyncIterator[httpx.AsyncClient]:
    """One router for the whole file: what one request does to it, the others would feel."""
    async with FakeMesh(1).serving() as mesh, mesh.router() as router:
        url = f"http://127.0.0.1:{router.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            yield client


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def still_serves(steady: httpx.AsyncClient) -> AsyncIterator[None]:
    """Behind every test the router answers a good request as before."""
    yield
    answer = await steady.post(CHAT, json=_chat(temperature=0, max_tokens=3))
    text = answer.json()["choices"][0]["message"]["content"]
    assert text
    assert REPLY.startswith(text)


def _chat(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **more}


def _refused(answer: httpx.Response, status: int, param: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(answer.content) < 800
    if param is not None:
        assert error["param"] == param, error


BODIES = {
    "nothing": b"",
    "truncated": b'{"model": "tiny", "messages": [{"role": "us',
    "a list": b"[]",
    "not utf-8": b'{"model": "\xff"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "two values": b"{} {}",
    "depth 10,000": b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "depth 100": b'{"x":' + b"[" * 100 + b"]" * 100 + b"}",
    "objects 5,000 deep": b'{"x":' * 5_000 + b"1" + b"}" * 5_000,
    "a million keys": json.dumps({str(i): 0 for i in range(1_000_000)}).encode(),
    "duplicate keys": b'{"model": "tiny", "model": "tiny", "messages": []}',
    "duplicate keys within": b'{"model":"tiny","messages":[{"role":"user","role":"user"}]}',
    "NaN": b'{"model": "tiny", "temperature": NaN}',
    "Infinity": b'{"model": "tiny", "temperature": -Infinity}',
    "1e999": b'{"model": "tiny", "temperature": 1e999}',
    "5,000 digits": b'{"model": "tiny", "seed": ' + b"9" * 5_000 + b"}",
    "a lone surrogate": b'{"model": "tiny", "messages": [{"role":"user","content":"\\ud800"}]}',
    "NUL in the prompt": b'{"model": "tiny", "messages": [{"role":"user","content":"a\\u0000b"}]}',
    "a lone surrogate as a key": b'{"\\ud800": 1}',
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.group(5, 11, 12, 13, 14)
async def test_a_body_that_is_no_plain_json_object_is_400(
    steady: httpx.AsyncClient, name: str
) -> None:
    _refused(await steady.post(CHAT, content=BODIES[name], headers=JSON), 400)


PARAMETERS: list[tuple[str, Any, str]] = [
    *(("n", value, "n") for value in (0, -1, 1.5, "1", True, 10**9)),
    *(("max_tokens", value, "max_tokens") for value in (-1, 0, 2**63, 1.0, "5", MAX_POSITIONS)),
    *(("max_completion_tokens", value, "max_completion_tokens") for value in ("x", [])),
    *(("temperature", value, "temperature") for value in (-1, 2.1, 1e308, "hot", True, [])),
    *(("top_p", value, "top_p") for value in (1.1, -0.1, "x")),
    *(("top_k", value, "top_k") for value in (-2, 1.5, 2**40)),
    *(("min_p", value, "min_p") for value in (-0.1, 1, 1.5)),
    *(("repetition_penalty", value, "repetition_penalty") for value in (0, -1, 3)),
    *(("presence_penalty", value, "presence_penalty") for value in (-3, 3, "x")),
    *(("frequency_penalty", value, "frequency_penalty") for value in (-3, 3)),
    *(("min_tokens", value, "min_tokens") for value in (-1, 10**6, 1.5)),
    *(("seed", value, "seed") for value in (2**64, -(2**63) - 1, 1.5, "x")),
    *(("logit_bias", value, "logit_bias") for value in ({"303": 1}, {"-1": 1}, {"a": 1})),
    *(("logit_bias", value, "logit_bias") for value in ({"1.5": 1}, {"1": "x"}, {"1": 101}, [])),
    ("logit_bias", {str(i): 1 for i in range(15_000)}, "logit_bias"),
    *(("stop_token_ids", value, "stop_token_ids") for value in ([303], [-1], [1.5], ["1"], 7)),
    ("stop_token_ids", [1] * 1_000_000, "stop_token_ids"),
    *(("stop", value, "stop") for value in ("", [""], [1], 5, {}, ["a", None])),
    ("stop", [str(i) for i in range(10_000)], "stop"),
    ("stop", "x" * (1 << 20), "stop"),
    ("model", "", "model"),
    ("model", "m" * 1_000_000, "model"),
    ("model", 7, "model"),
    ("stream", "yes", "stream"),
    ("stream_options", {"include_usage": True}, "stream_options"),
    ("ignore_eos", 1, "ignore_eos"),
    ("response_format", {"type": "xml"}, "response_format.type"),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {}},
        "response_format.json_schema.name",
    ),
    (
        "response_format",
        {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"not": {}}, "strict": True},
        },
        "response_format",
    ),
    ("structured_outputs", {"regex": "("}, "structured_outputs"),
    ("structured_outputs", {"regex": "a", "choice": ["a"]}, "structured_outputs"),
    ("tools", [{"type": "function", "function": {}}], "tools[0].function.name"),
    ("tool_choice", "required", "tool_choice"),
    ("functions", [{"name": "f"}], "functions"),
    ("functions", {}, "functions"),
    ("best_of", 2, "best_of"),
    ("echo", True, "echo"),
    ("suffix", "x", "suffix"),
    ("audio", {"voice": "a"}, "audio"),
    ("verbosity", "low", "verbosity"),
    ("documents", [{"text": "x"}], "documents"),
    ("chat_template_kwargs", {"messages": []}, "chat_template_kwargs.messages"),
    ("chat_template_kwargs", [], "chat_template_kwargs"),
    ("reasoning_effort", 3, "reasoning_effort"),
    ("stream_options", {"else": 1}, "stream_options.else"),
    ("modalities", ["audio"], "modalities"),
    ("chat_template", "{{ 7 * 7 }}", "chat_template"),
    ("nonsense", 1, "nonsense"),
    ("top_logprobs", 2, "top_logprobs"),
    ("logprobs", 2, "logprobs"),
]


@pytest.mark.parametrize(("name", "value", "param"), PARAMETERS)
@pytest.mark.group(15, 16, 17, 19, 20, 24, 26)
async def test_a_parameter_out_of_range_is_400_and_named(
    steady: httpx.AsyncClient, name: str, value: Any, param: str
) -> None:
    _refused(await steady.post(CHAT, json=_chat(**{name: value})), 400, param)


@pytest.mark.group(18)
async def test_top_logprobs_have_a_limit(steady: httpx.AsyncClient) -> None:
    body = _chat(logprobs=True, top_logprobs=10**6)
    _refused(await steady.post(CHAT, json=body), 400, "top_logprobs")


MESSAGES: list[Any] = [
    None,
    [],
    {},
    "hi",
    [None],
    [{"role": "user"}],
    [{"role": "tool", "content": "x"}],
    [{"role": ["user"], "content": "x"}],
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": []}],
    [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": "x", "tool_calls": [{}]}],
    [{"role": "assistant", "content": "x", "refusal": "no"}],
    [{"role": "assistant", "content": "x", "audio": {"id": "a"}}],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": {"type": "text", "text": "x"}}],
    *(
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
        for url in ("http://169.254.169.254/latest", "file:///etc/passwd", "data:image/png;base64,")
    ),
]


@pytest.mark.parametrize("messages", MESSAGES)
@pytest.mark.group(25)
async def test_messages_that_are_no_texts_are_400(steady: httpx.AsyncClient, messages: Any) -> None:
    _refused(await steady.post(CHAT, json=_chat() | {"messages": messages}), 400)


PROMPTS: list[Any] = [
    None,
    "",
    [],
    5,
    {},
    [-1],
    [303],
    [1, "a"],
    [1, [2]],
    [1.5],
    [True],
    [2**40],
    [1] * MAX_POSITIONS,
    "nul \0",
]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.group(14, 21)
async def test_a_prompt_that_is_none_is_400(steady: httpx.AsyncClient, prompt: Any) -> None:
    body = {"model": "tiny", "prompt": prompt}
    _refused(await steady.post("/v1/completions", json=body), 400)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "chat_template_kwargs"),
        ({"messages": [{"role": "user", "content": "x", "message": "y"}]}, "messages[0].message"),
    ],
)
@pytest.mark.group(24)
async def test_what_the_models_template_reads_is_refused_by_name(
    steady: httpx.AsyncClient, more: dict[str, Any], param: str
) -> None:
    answer = await steady.post(CHAT, json=_chat() | more)
    _refused(answer, 400)
    assert answer.json()["error"]["param"].startswith(param)


@pytest.mark.parametrize(
    "more",
    [
        {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
        {"messages": [{"role": "user", "content": "x", "timestamp": 17}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": None}]},
    ],
)
async def test_what_the_models_template_does_not_read_is_taken(
    steady: httpx.AsyncClient, more: dict[str, Any]
) -> None:
    answer = await steady.post(CHAT, json=_chat(max_tokens=1) | more)
    assert answer.status_code == 200, answer.text


OVERFLOWS: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, {"messages": [{"role": "user", "content": "東" * MAX_POSITIONS}]}, "messages", ""),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 10**6}]}, "messages", "at least "),
    (CHAT, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2048}, "max_tokens", ""),
    ("/v1/completions", {"prompt": [1] * MAX_POSITIONS}, "prompt", f"at least {MAX_POSITIONS}"),
    ("/v1/completions", {"prompt": [1] * 10, "max_tokens": MAX_POSITIONS}, "max_tokens", "2058"),
]


@pytest.mark.parametrize(("path", "body", "param", "said"), OVERFLOWS)
@pytest.mark.group(16)
async def test_what_does_not_fit_the_context_is_told_as_clients_look_for_it(
    steady: httpx.AsyncClient, path: str, body: dict[str, Any], param: str, said: str
) -> None:
    answer = await steady.post(path, json={"model": "tiny", **body})
    _refused(answer, 400, param)
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("context_length_exceeded", "invalid_request_error")
    assert f"maximum context length is {MAX_POSITIONS} tokens" in error["message"]
    assert said in error["message"]
    assert len(re.findall(r"\d+", error["message"])) >= 2


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": {}}, "messages must be an array, not an empty object"),
    ({"messages": [["hi"]]}, "messages[0] must be an object, not an array"),
    ({"stop": {"a": 1}}, "stop must be a string or an array, not an object"),
    ({"stop": [["a"]]}, "stop must be a string or an array of strings, and holds an array"),
    ({"temperature": "0.7"}, 'temperature must be a number, not "0.7"'),
    ({"temperature": True}, "temperature must be a number, not true"),
    ({"temperature": 2.5}, "temperature must lie in [0, 2], not 2.5"),
    ({"n": 0}, "n must lie in [1, 16], not 0"),
    ({"max_tokens": 1.5}, "max_tokens must be an integer, not 1.5"),
    ({"logit_bias": [1]}, "logit_bias must be an object, not an array"),
    ({"stop": [str(i) for i in range(17)]}, "stop has 17 entries, at most 16"),
    ({"tools": [{}]}, 'tools[0].type must be "function", not null'),
    (
        {"functions": [{}]},
        "functions is not supported: leave it out or send [], not an array",
    ),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
async def test_a_refusal_says_what_came_and_what_is_wanted(
    steady: httpx.AsyncClient, wrong: dict[str, Any], message: str
) -> None:
    answer = await steady.post(CHAT, json=_chat(**wrong))
    _refused(answer, 400)
    assert answer.json()["error"]["message"] == message


JSON_FAULTS = {
    b'{"model": "tiny", "model": "x"}': 'the key "model" occurs twice in one object',
    b'{"seed": 1e999}': "the number 1e999 is too large or too long",
    b'{"n": NaN}': "NaN is not JSON",
    b"{'n': 1}": "the body is not JSON: Expecting property name enclosed in double quotes",
}


@pytest.mark.parametrize("body", JSON_FAULTS)
async def test_what_is_not_json_is_told_by_what_came(
    steady: httpx.AsyncClient, body: bytes
) -> None:
    answer = await steady.post(CHAT, content=body, headers=JSON)
    _refused(answer, 400)
    assert answer.json()["error"]["message"].startswith(JSON_FAULTS[body])


async def test_a_body_that_is_no_object_is_called_what_it_is(steady: httpx.AsyncClient) -> None:
    answer = await steady.post(CHAT, content=b"[1]", headers=JSON)
    assert answer.json()["error"]["message"] == "the body must be an object, not an array"


@pytest.mark.parametrize("name", ["../../etc/passwd", "Tiny", "tiny ", "no\r\nX: y"])
@pytest.mark.group(26)
async def test_an_unknown_model_is_404(steady: httpx.AsyncClient, name: str) -> None:
    _refused(await steady.post(CHAT, json=_chat() | {"model": name}), 404, "model")


@pytest.mark.group(6, 21)
async def test_ten_million_ids_are_413(steady: httpx.AsyncClient) -> None:
    content = b'{"model":"tiny","prompt":[' + b"1," * 10_000_000 + b"1]}"
    _refused(await steady.post("/v1/completions", content=content, headers=JSON), 413)


@pytest.mark.group(6)
async def test_a_body_over_the_limit_is_413_without_a_length_too(
    steady: httpx.AsyncClient,
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * (1 << 20)

    _refused(await steady.post(CHAT, content=endless(), headers=JSON), 413)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
@pytest.mark.group(9, 10)
async def test_another_media_type_is_415(
    steady: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    content = json.dumps(_chat()).encode()
    _refused(await steady.post(CHAT, content=content, headers=headers), 415)


@pytest.mark.group(10)
async def test_another_method_is_405(steady: httpx.AsyncClient) -> None:
    answer = await steady.get(CHAT)
    _refused(answer, 405)
    assert answer.headers["allow"] == "POST"


EVENT_IDS = ["-1", "1" * 31, "0", "x", "1-zzzzzzzz", "1,2-00000000", "9" * 5000]


@pytest.mark.parametrize("event_id", EVENT_IDS)
@pytest.mark.group(27)
async def test_an_event_id_that_cannot_be_is_400(steady: httpx.AsyncClient, event_id: str) -> None:
    began = await steady.post(CHAT, json=_chat(temperature=0))
    path = f"/v1/generations/{began.headers['x-generation-id']}/stream"
    _refused(await steady.get(path, headers={"last-event-id": event_id}), 400)


@pytest.mark.parametrize("event_id", ["3-00000000", "5000-00000000", "3-00000000.end"])
@pytest.mark.group(27)
async def test_an_event_id_that_does_not_belong_is_409(
    steady: httpx.AsyncClient, event_id: str
) -> None:
    began = await steady.post(CHAT, json=_chat(temperature=0))
    path = f"/v1/generations/{began.headers['x-generation-id']}/stream"
    _refused(await steady.get(path, headers={"last-event-id": event_id}), 409, "last_event_id")


@pytest.mark.parametrize(
    ("generation_id", "status", "named"),
    [
        ("g" + "f" * 32, 404, True),
        ("unknown", 404, True),
        ("a" * 65, 400, False),
        ("..%2f..", 404, False),
        ("%00", 400, False),
        ("g65000000" + "0" * 24, 410, True),
    ],
)
@pytest.mark.group(27)
async def test_a_generation_nobody_knows_is_404_and_an_old_one_410(
    steady: httpx.AsyncClient, generation_id: str, status: int, named: bool
) -> None:
    answer = await steady.get(f"/v1/generations/{generation_id}/stream")
    _refused(answer, status)
    assert answer.headers.get("x-generation-id") == (generation_id if named else None)
