"""openai: https://github.com/openai/openai-python#usage"""

from __future__ import annotations

import json
import time

import openai
from cases import KEY, MODEL, QUESTION, run
from openai import OpenAI
from pydantic import BaseModel

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
ASKED = [{"role": "user", "content": QUESTION}]


class CalendarEvent(BaseModel):
    """What is to be read out of a sentence."""

    name: str
    date: str
    participants: list[str]


def client(url: str) -> OpenAI:
    return OpenAI(base_url=url, api_key=KEY, max_retries=0)


def chat(url: str) -> None:
    answer = client(url).chat.completions.create(model=MODEL, messages=ASKED)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


def stream(url: str) -> None:
    chunks = client(url).chat.completions.create(model=MODEL, messages=ASKED, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def completion(url: str) -> None:
    answer = client(url).completions.create(model=MODEL, prompt="Once", max_tokens=5)
    assert answer.choices[0].text


def models(url: str) -> None:
    assert MODEL in [model.id for model in client(url).models.list()]


def error(url: str) -> None:
    refused = None
    try:
        client(url).chat.completions.create(model="nobody", messages=ASKED)
    except openai.NotFoundError as found:
        refused = found
    assert refused is not None
    assert refused.code == "model_not_found"


def parse(url: str) -> None:
    answer = client(url).chat.completions.parse(
        model=MODEL, messages=ASKED, response_format=CalendarEvent
    )
    assert isinstance(answer.choices[0].message.parsed, CalendarEvent)


def tools(url: str) -> None:
    asked = list(ASKED)
    answer = client(url).chat.completions.create(model=MODEL, messages=asked, tools=[WEATHER])
    message = answer.choices[0].message
    [call] = message.tool_calls
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    asked += [message, result]
    answer = client(url).chat.completions.create(model=MODEL, messages=asked, tools=[WEATHER])
    assert answer.choices[0].message.content


def tools_streamed(url: str) -> None:
    with client(url).chat.completions.stream(
        model=MODEL, messages=ASKED, tools=[WEATHER], tool_choice="required"
    ) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    [call] = final.choices[0].message.tool_calls
    assert call.function.parsed_arguments.keys() == {"city"}


def batches(url: str) -> None:
    lines = [
        {
            "custom_id": f"request-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": MODEL, "messages": ASKED, "max_tokens": 5},
        }
        for number in range(3)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client(url).files.create(file=("batch.jsonl", text), purpose="batch")
    batch = client(url).batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while batch.status in ("validating", "in_progress", "finalizing"):
        time.sleep(0.1)
        batch = client(url).batches.retrieve(batch.id)
    assert batch.status == "completed"
    answers = client(url).files.content(batch.output_file_id).text.splitlines()
    named = {json.loads(line)["custom_id"] for line in answers}
    assert named == {line["custom_id"] for line in lines}


def responses(url: str) -> None:
    answer = client(url).responses.create(model=MODEL, input=QUESTION)
    assert answer.output_text
    again = client(url).responses.create(
        model=MODEL, input="And tomorrow?", previous_response_id=answer.id
    )
    assert again.output_text
    assert client(url).responses.retrieve(answer.id).output_text == answer.output_text


def responses_streamed(url: str) -> None:
    with client(url).responses.stream(model=MODEL, input=QUESTION) as events:
        kinds = [event.type for event in events]
        assert events.get_final_response().output_text
    assert "response.output_text.delta" in kinds


def responses_parse(url: str) -> None:
    answer = client(url).responses.parse(model=MODEL, input=QUESTION, text_format=CalendarEvent)
    assert isinstance(answer.output_parsed, CalendarEvent)


run(
    chat,
    stream,
    completion,
    models,
    error,
    parse,
    tools,
    tools_streamed,
    batches,
    responses,
    responses_streamed,
    responses_parse,
)
