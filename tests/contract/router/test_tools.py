"""Tools and thoughts through both doors, wherever a stream is cut."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import httpx
import openai
import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import channels
from services.common.errors import InvalidArgument
from services.common.roles import Role
from services.common.statuses import from_rpc_error
from services.router.__main__ import RunningDoors
from tests.contract.router.conftest import Told
from tests.fake_mesh import FakeMesh
from tests.waiting import until

Ask = Callable[..., Awaitable[Told]]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells it", "parameters": SCHEMA},
}
ARGUMENTS = ['{"city": "Zürich 🚀", "days": 3}', '{"city": "東京"}']
REPLY = "I look.\n" + "\n".join(
    f'<tool_call>\n{{"name": "weather", "arguments": {each}}}\n</tool_call>' for each in ARGUMENTS
)
USER = {"role": "user", "content": "How is the weather?"}


@pytest.fixture(autouse=True)
def calls_tools(mesh: FakeMesh) -> None:
    mesh.replies = [REPLY, "Fine."]


@pytest.fixture
async def client(router: RunningDoors) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"http://127.0.0.1:{router.http_port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


async def test_a_whole_answer_has_its_calls(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="tiny", temperature=0, messages=[USER], tools=[WEATHER], n=2
    )
    called, plain = answer.choices
    assert called.finish_reason == "tool_calls"
    assert called.message.content == "I look."
    assert called.message.tool_calls is not None
    assert [call.function.arguments for call in called.message.tool_calls] == ARGUMENTS
    assert {call.function.name for call in called.message.tool_calls} == {"weather"}
    assert len({call.id for call in called.message.tool_calls}) == 2
    assert (plain.finish_reason, plain.message.content) == ("stop", "Fine.")
    assert plain.message.tool_calls is None
    turns: list[Any] = [
        USER,
        called.message.model_dump(exclude_none=True),
        *(
            {"role": "tool", "tool_call_id": call.id, "content": "rain"}
            for call in called.message.tool_calls
        ),
    ]
    again = await client.chat.completions.create(
        model="tiny", temperature=0, messages=turns, tools=[WEATHER], tool_choice="none"
    )
    assert again.choices[0].message.content == REPLY


async def test_the_clients_own_helper_puts_a_streamed_call_together(
    client: openai.AsyncOpenAI,
) -> None:
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    async with client.chat.completions.stream(
        model="tiny", temperature=0, messages=[USER], tools=[strict]
    ) as stream:
        done = [e async for e in stream if e.type == "tool_calls.function.arguments.done"]
        final = (await stream.get_final_completion()).choices[0]
    assert [event.arguments for event in done] == ARGUMENTS
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls is not None
    parsed = [call.function.parsed_arguments for call in final.message.tool_calls]
    assert parsed == [json.loads(each) for each in ARGUMENTS]


def data_of(told: Told) -> list[str]:
    """Chunks, less those without an id, and less usage."""
    pairs = zip(told.ids, told.events, strict=True)
    return [json.dumps(event) for event_id, event in pairs if event_id and event["choices"]]


async def test_a_stream_that_is_cut_anywhere_goes_on_with_the_same_pieces(
    http: httpx.AsyncClient, ask: Ask, resume: Ask, mesh: FakeMesh
) -> None:
    whole = await ask(http, messages=[USER], tools=[WEATHER])
    pieces = [p for c in whole.choices() for p in c["delta"].get("tool_calls", ())]
    first = [piece for piece in pieces if "id" in piece]
    assert [piece["index"] for piece in first] == [0, 1]
    assert all(piece["type"] == "function" for piece in first)
    assert all(piece["function"] == {"name": "weather", "arguments": ""} for piece in first)
    assert len(pieces) > 20
    for index, arguments in enumerate(ARGUMENTS):
        fragments = [p["function"]["arguments"] for p in pieces if p["index"] == index]
        assert "".join(fragments) == arguments
    assert whole.finishes() == ["tool_calls"]
    named = [event_id for event_id in whole.ids if event_id]
    for cut in range(len(named)):
        again = await resume(http, whole.generation_id, named[cut])
        before = [json.loads(d) for d in data_of(whole)[: cut + 1]]
        both = [c for e in [*before, *again.events] for c in e.get("choices", ())]
        for index, arguments in enumerate(ARGUMENTS):
            found = [
                piece["function"]["arguments"]
                for choice in both
                for piece in choice["delta"].get("tool_calls", ())
                if piece["index"] == index
            ]
            assert "".join(found) == arguments
        assert again.done == 1


async def test_a_stream_survives_the_head_that_wrote_half_a_call(
    http: httpx.AsyncClient, ask: Ask, mesh: FakeMesh
) -> None:
    whole = await ask(http, messages=[USER], tools=[WEATHER])
    mesh.token_s = 0.005
    told = Told()

    def in_a_call() -> bool:
        return any(c["delta"].get("tool_calls") for c in told.choices())

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ask(http, told=told, messages=[USER], tools=[WEATHER]))
        await until(in_a_call)
        await mesh.kill(next(iter(mesh.journal.values())).head)

    def arguments(told: Told) -> list[str]:
        pieces = [p for c in told.choices() for p in c["delta"].get("tool_calls", ())]
        return [
            "".join(p["function"]["arguments"] for p in pieces if p["index"] == index)
            for index in range(2)
        ]

    assert arguments(told) == arguments(whole) == ARGUMENTS
    assert told.finishes() == ["tool_calls"]
    assert told.text() == whole.text() == "I look."


async def test_a_named_tool_ends_as_any_text_does(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="tiny",
        temperature=0,
        messages=[USER],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "weather"}},
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.tool_calls


async def test_the_model_is_shown_every_tool_and_calls_those_that_are_allowed(
    client: openai.AsyncOpenAI, mesh: FakeMesh
) -> None:
    other: Any = {"type": "function", "function": {"name": "other"}}

    async def ask(*allowed: str) -> tuple[Any, int]:
        names: list[Any] = [{"type": "function", "function": {"name": each}} for each in allowed]
        choice: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": names}}
        answer = await client.chat.completions.create(
            model="tiny", temperature=0, messages=[USER], tools=[WEATHER, other], tool_choice=choice
        )
        assert answer.usage is not None
        return answer.choices[0], answer.usage.prompt_tokens

    (called, prompt), (refused, same_prompt) = await ask("weather"), await ask("other")
    assert [call.function.name for call in called.message.tool_calls] == ["weather"] * 2
    assert called.finish_reason == "tool_calls"
    # The stand-in minds no grammar: what it writes of a tool that is not allowed is text.
    assert (refused.message.tool_calls, refused.message.content) == (None, REPLY)
    assert prompt == same_prompt


async def test_a_response_calls_the_tools_that_are_allowed(client: openai.AsyncOpenAI) -> None:
    tool: Any = {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]
    other: Any = {"type": "function", "name": "other", "parameters": None, "strict": False}
    choice: Any = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "weather"}],
    }
    response = await client.responses.create(
        model="tiny", temperature=0, input="?", tools=[tool, other], tool_choice=choice
    )
    assert [item.name for item in response.output if item.type == "function_call"] == [
        "weather",
        "weather",
    ]
    assert response.tool_choice.model_dump() == choice  # type: ignore[union-attr]
    choice["tools"].append({"type": "function"})
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model="tiny", input="?", tools=[tool], tool_choice=choice)
    assert refused.value.param == "tool_choice.tools[1].name"


async def test_arguments_that_cannot_be_followed_are_refused_by_tool_and_keyword(
    http: httpx.AsyncClient,
) -> None:
    unique = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    tools = [WEATHER, {"type": "function", "function": {"name": "b", "parameters": unique}}]
    body = {"model": "tiny", "messages": [USER], "tools": tools}
    lenient = await http.post("/v1/chat/completions", json=body)
    assert lenient.status_code == 200
    tools[1]["function"]["strict"] = True  # type: ignore[index]
    refused = await http.post("/v1/chat/completions", json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "tools[1].function.parameters")
    assert "uniqueItems" in error["message"]


async def test_grpc_tells_calls_and_takes_them_back(router: RunningDoors) -> None:
    def request(**tools: Any) -> router_pb2.GenerateRequest:
        turn = router_pb2.ChatMessage(role="user", content="How is the weather?")
        tool = router_pb2.Tool(name="weather", parameters=json.dumps(SCHEMA))
        return router_pb2.GenerateRequest(
            model="tiny",
            sampling=router_pb2.SamplingOptions(temperature=0),
            chat=router_pb2.Chat(messages=[turn]),
            tools=router_pb2.Tools(tools=[tool], **tools),
        )

    async with channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        deltas = [d async for e in stub.Generate(request(), timeout=60) for d in e.deltas]
        pieces = [piece for delta in deltas for piece in delta.tool_calls]
        assert [piece.name for piece in pieces if piece.name] == ["weather", "weather"]
        joined = ["".join(p.arguments for p in pieces if p.index == i) for i in range(2)]
        assert joined == ARGUMENTS
        assert deltas[-1].finish_reason == common_pb2.FINISH_REASON_TOOL_CALLS
        again = request(mode=router_pb2.TOOL_MODE_NONE)
        again.chat.messages.add(
            role="assistant",
            tool_calls=[
                router_pb2.ToolCall(id=pieces[0].id, name="weather", arguments=ARGUMENTS[0])
            ],
        )
        again.chat.messages.add(role="tool", tool_call_id=pieces[0].id, content="rain")
        events = [e async for e in stub.Generate(again, timeout=60)]
        assert "".join(d.text for e in events for d in e.deltas) == REPLY
        again.chat.messages.add(role="tool", tool_call_id="other", content="rain")
        with pytest.raises(InvalidArgument, match=r"messages\[3\].tool_call_id"):
            await _refused(stub, again)
        with pytest.raises(InvalidArgument, match="no tool is called"):
            await _refused(stub, request(named="other"))
        with pytest.raises(InvalidArgument, match="no tool is called"):
            await _refused(stub, request(allowed=["weather", "other"]))
        with pytest.raises(InvalidArgument, match="named and allowed"):
            await _refused(stub, request(named="weather", allowed=["weather"]))
        required = request(mode=router_pb2.TOOL_MODE_REQUIRED, allowed=["weather"])
        deltas = [d async for e in stub.Generate(required, timeout=60) for d in e.deltas]
        assert deltas[-1].finish_reason == common_pb2.FINISH_REASON_TOOL_CALLS


async def _refused(
    stub: router_pb2_grpc.RouterServiceStub, request: router_pb2.GenerateRequest
) -> None:
    try:
        _ = [event async for event in stub.Generate(request, timeout=60)]
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
