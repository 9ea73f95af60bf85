"""What came of a request of any kind, put together, less what is drawn for each request.

Names of generations, responses, batches and calls, and times, differ between two requests that ask
the same. Within one stream no call may change its name.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from services.router.core.batches.lines import generation_id_of

if TYPE_CHECKING:
    from bench.kinds_asked import Kind

LOOK_S = 0.1
"""Between two looks at what nobody reads."""
ENDED = ("completed", "incomplete", "failed", "cancelled", "expired")
"""Of a response or a batch."""
DRAWN = ("id", "item_id", "call_id", "response_id", "created_at", "completed_at", "created")
"""Fields of a response, and of an answer to a batch's line, that differ."""


@dataclass
class Choice:
    """What came of one choice, joined: how much of it an event has depends on the pace."""

    text: str = ""
    thoughts: str = ""
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    """Name and arguments of each call."""
    call_ids: dict[int, set[str]] = field(default_factory=dict)
    logprobs: dict[str, list[Any]] = field(default_factory=dict)
    finish_reason: str | None = None

    def take(self, choice: Mapping[str, Any]) -> None:
        """Takes what an event has of it, or a whole answer."""
        delta = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        self.text += delta.get("content") or ""
        self.thoughts += delta.get("reasoning_content") or ""
        for place, call in enumerate(delta.get("tool_calls") or ()):
            index = call.get("index", place)
            if "id" in call:
                self.call_ids.setdefault(index, set()).add(call["id"])
            known = self.calls.setdefault(index, {"name": "", "arguments": ""})
            for name in known:
                known[name] += call["function"].get(name, "")
        for name, values in (choice.get("logprobs") or {}).items():
            self.logprobs.setdefault(name, []).extend(values or ())
        self.finish_reason = choice.get("finish_reason") or self.finish_reason

    @property
    def what(self) -> Any:
        """All that must be equal."""
        return (self.text, self.thoughts, self.calls, self.logprobs, self.finish_reason)


@dataclass
class Answer:
    """What came of a request."""

    generation_ids: set[str] = field(default_factory=set)
    """As the controller's status names them."""
    choices: dict[int, Choice] = field(default_factory=dict)
    """Of a batch, one a line."""
    told: list[Any] = field(default_factory=list)
    """Events of a response, each as it is."""
    usage: Any = None
    error: str = ""
    done: bool = False
    events: int = 0

    def take(self, event: Mapping[str, Any]) -> None:
        """Takes one event of a stream, or a whole answer."""
        self.events += 1
        if "error" in event:
            self.error = json.dumps(event["error"])
        if usage := event.get("usage"):
            usage.pop("prompt_tokens_details", None)
            self.usage = usage
        for choice in event.get("choices", ()):
            self.choices.setdefault(choice["index"], Choice()).take(choice)

    @property
    def one_id_a_call(self) -> bool:
        """No call changed its name in mid-stream."""
        ids = [ids for choice in self.choices.values() for ids in choice.call_ids.values()]
        return all(len(one) == 1 for one in ids)

    @property
    def what(self) -> Any:
        """All that must be equal."""
        choices = {index: choice.what for index, choice in self.choices.items()}
        return (choices, self.told, self.usage, self.error, self.done)


async def ask(client: httpx.AsyncClient, url: str, model: str, kind: Kind, answer: Answer) -> None:
    """Asks for one of a kind; what failed is the answer's `error`."""
    api, body = f"{url}/v1", {"model": model, **kind.body}
    try:
        if kind.lines:
            await _batch(client, api, kind, body, answer)
        elif kind.runs_alone:
            await _background(client, api, body, answer)
        elif kind.route == "responses":
            await _response(client, f"{api}/{kind.route}", body, answer)
        else:
            await _stream(client, f"{api}/{kind.route}", body, answer)
    except (httpx.HTTPError, _Refused) as error:
        answer.error = answer.error or repr(error)


class _Refused(Exception):
    """With a status that is none of success."""


async def _sent(client: httpx.AsyncClient, method: str, url: str, **sent: Any) -> Any:
    """The answer; raises _Refused."""
    answer = await client.request(method, url, **sent)
    if answer.status_code != 200:
        raise _Refused(f"{answer.status_code} {answer.text}")
    return answer


async def _stream(
    client: httpx.AsyncClient, url: str, body: Mapping[str, Any], answer: Answer
) -> None:
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", url, json=asked) as response:
        answer.generation_ids.add(response.headers.get("x-generation-id", ""))
        if response.status_code != 200:
            raise _Refused(f"{response.status_code} {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                answer.done = True
            elif line.startswith("data:"):
                answer.take(json.loads(line[5:]))


# Responses


async def _response(
    client: httpx.AsyncClient, url: str, body: Mapping[str, Any], answer: Answer
) -> None:
    async with client.stream("POST", url, json={**body, "stream": True}) as response:
        if response.status_code != 200:
            raise _Refused(f"{response.status_code} {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            event = json.loads(line[5:])
            answer.events += 1
            if event["type"] == "response.created":
                answer.generation_ids.add(event["response"]["id"].removeprefix("resp_"))
            answer.told.append(_undrawn(event))
            if event["type"] == "response.completed":
                answer.done = True
                _take_response(event["response"], answer)


async def _background(
    client: httpx.AsyncClient, api: str, body: Mapping[str, Any], answer: Answer
) -> None:
    sent = await _sent(client, "POST", f"{api}/responses", json={**body, "background": True})
    response = sent.json()
    answer.generation_ids.add(response["id"].removeprefix("resp_"))
    while response["status"] not in ENDED:
        await asyncio.sleep(LOOK_S)
        response = (await _sent(client, "GET", f"{api}/responses/{response['id']}")).json()
        answer.events += response["status"] == "in_progress"
    answer.done = response["status"] == "completed"
    answer.told.append(_undrawn(response))
    _take_response(response, answer)


def _take_response(response: Mapping[str, Any], answer: Answer) -> None:
    choice = answer.choices.setdefault(0, Choice())
    for item in response["output"]:
        for part in item.get("content", ()):
            choice.take({"text": part.get("text")})
        if item["type"] == "function_call":
            call = {"function": item, "id": item["call_id"], "index": len(choice.calls)}
            choice.take({"delta": {"tool_calls": [call]}})


def _undrawn(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _undrawn(held) for key, held in value.items() if key not in DRAWN}
        if kept.get("usage"):
            kept["usage"].pop("input_tokens_details", None)
        return kept
    return [_undrawn(each) for each in value] if isinstance(value, list) else value


# Batches


async def _batch(
    client: httpx.AsyncClient, api: str, kind: Kind, body: Mapping[str, Any], answer: Answer
) -> None:
    endpoint = f"/v1/{kind.route}"
    lines = (
        {
            "custom_id": str(number),
            "method": "POST",
            "url": endpoint,
            "body": {**body, "seed": number},
        }
        for number in range(kind.lines)
    )
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    files = {"file": ("in.jsonl", content)}
    sent = await _sent(client, "POST", f"{api}/files", files=files, data={"purpose": "batch"})
    asked = {
        "input_file_id": sent.json()["id"],
        "endpoint": endpoint,
        "completion_window": "24h",
    }
    batch = (await _sent(client, "POST", f"{api}/batches", json=asked)).json()
    answer.generation_ids.update(generation_id_of(batch["id"], n) for n in range(kind.lines))
    while batch["status"] not in ENDED:
        await asyncio.sleep(LOOK_S)
        batch = (await _sent(client, "GET", f"{api}/batches/{batch['id']}")).json()
        answer.events += batch["status"] == "in_progress"
    answer.done = batch["status"] == "completed"
    answer.usage = batch["request_counts"]
    found = await _sent(client, "GET", f"{api}/files/{batch['output_file_id']}/content")
    for line in found.content.splitlines():
        result = json.loads(line)
        number = int(result["custom_id"])
        if number in answer.choices:
            answer.error = f"line {number} has two results"
        (choice,) = result["response"]["body"]["choices"]
        answer.choices.setdefault(number, Choice()).take(choice)
