"""litellm: https://docs.litellm.ai/docs/providers/openai_compatible"""

from __future__ import annotations

import json

import litellm
from cases import KEY, MODEL, QUESTION, run
from pydantic import BaseModel

litellm.drop_params = False
ASKED = [{"role": "user", "content": QUESTION}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}},
            "required": ["city"],
        },
    },
}


class Event(BaseModel):
    """What is to be read out of a sentence."""

    name: str
    date: str


def answered(url: str, **more: object) -> object:
    return litellm.completion(
        model=f"openai/{MODEL}", api_base=url, api_key=KEY, messages=ASKED, num_retries=0, **more
    )


def completion(url: str) -> None:
    assert answered(url).choices[0].message.content


def stream(url: str) -> None:
    assert "".join(c.choices[0].delta.content or "" for c in answered(url, stream=True))


def tools(url: str) -> None:
    [call] = answered(url, tools=[WEATHER], tool_choice="auto").choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}


def response_format(url: str) -> None:
    Event.model_validate_json(answered(url, response_format=Event).choices[0].message.content)


def json_object(url: str) -> None:
    answer = answered(url, response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


run(completion, stream, tools, response_format, json_object)
