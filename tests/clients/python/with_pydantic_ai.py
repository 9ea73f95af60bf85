"""pydantic-ai: https://ai.pydantic.dev/models/openai/#openai-compatible-models"""

from __future__ import annotations

from cases import KEY, MODEL, QUESTION, run
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class CityLocation(BaseModel):
    """Where something was"""

    city: str
    country: str


def model(url: str) -> OpenAIChatModel:
    return OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=url, api_key=KEY))


def run_sync(url: str) -> None:
    assert Agent(model(url), instructions="Be concise.").run_sync(QUESTION).output


async def run_stream(url: str) -> None:
    async with Agent(model(url)).run_stream(QUESTION) as answer:
        assert [piece async for piece in answer.stream_text(delta=True)]


def tools(url: str) -> None:
    agent, cities = Agent(model(url)), []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather in a city"""
        cities.append(city)
        return "sunny"

    assert agent.run_sync(QUESTION).output
    assert len(cities) == 1


def output_type(url: str) -> None:
    agent = Agent(model(url), output_type=CityLocation)
    assert isinstance(agent.run_sync("Where were the Olympics in 2012?").output, CityLocation)


def native_output(url: str) -> None:
    agent = Agent(model(url), output_type=NativeOutput(CityLocation))
    assert isinstance(agent.run_sync("Where were the Olympics in 2012?").output, CityLocation)


run(run_sync, run_stream, tools, output_type, native_output)
