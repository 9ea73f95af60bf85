"""langchain-openai: https://python.langchain.com/docs/integrations/chat/openai/"""

from __future__ import annotations

from cases import KEY, MODEL, QUESTION, run
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field


class GetWeather(BaseModel):
    """The current weather in a given location"""

    location: str = Field(description="The city", max_length=8)


class Joke(BaseModel):
    """A joke to tell"""

    setup: str = Field(description="Its question")
    punchline: str = Field(description="Its answer")


def llm(url: str) -> ChatOpenAI:
    return ChatOpenAI(model=MODEL, base_url=url, api_key=KEY, max_retries=0)


def invoke(url: str) -> None:
    messages = [("system", "You are a helpful assistant."), ("human", QUESTION)]
    answer = llm(url).invoke(messages)
    assert answer.content
    assert answer.usage_metadata["output_tokens"] > 0


def stream(url: str) -> None:
    assert "".join(chunk.content for chunk in llm(url).stream(QUESTION))


async def ainvoke(url: str) -> None:
    assert (await llm(url).ainvoke(QUESTION)).content


def bind_tools(url: str) -> None:
    answer = llm(url).bind_tools([GetWeather]).invoke(QUESTION)
    [call] = answer.tool_calls
    assert call["name"] == "GetWeather"
    assert set(call["args"]) == {"location"}


def bind_tools_any(url: str) -> None:
    answer = llm(url).bind_tools([GetWeather], tool_choice="any").invoke(QUESTION)
    assert [call["name"] for call in answer.tool_calls] == ["GetWeather"]


def structured_json_schema(url: str) -> None:
    asked = llm(url).with_structured_output(Joke, method="json_schema")
    assert isinstance(asked.invoke("Tell me a joke"), Joke)


def structured_function_calling(url: str) -> None:
    asked = llm(url).with_structured_output(Joke, method="function_calling")
    assert isinstance(asked.invoke("Tell me a joke"), Joke)


def structured_json_mode(url: str) -> None:
    asked = llm(url).with_structured_output(None, method="json_mode")
    assert isinstance(asked.invoke("Tell me a joke as JSON"), dict)


run(
    invoke,
    stream,
    ainvoke,
    bind_tools,
    bind_tools_any,
    structured_json_schema,
    structured_function_calling,
    structured_json_mode,
)
