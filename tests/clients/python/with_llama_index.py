"""llama-index: https://docs.llamaindex.ai/en/stable/api_reference/llms/openai_like/"""

from __future__ import annotations

from cases import KEY, MODEL, QUESTION, run
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Song(BaseModel):
    """A song"""

    title: str
    seconds: int


def get_weather(city: str) -> str:
    """The weather in a city"""
    return f"sunny in {city}"


def llm(url: str) -> OpenAILike:
    return OpenAILike(
        model=MODEL,
        api_base=url,
        api_key=KEY,
        is_chat_model=True,
        is_function_calling_model=True,
        max_retries=0,
    )


def complete(url: str) -> None:
    assert str(llm(url).complete("Paul Graham is "))


def chat(url: str) -> None:
    assert llm(url).chat([ChatMessage(role="user", content=QUESTION)]).message.content


def stream_chat(url: str) -> None:
    chunks = llm(url).stream_chat([ChatMessage(role="user", content=QUESTION)])
    assert "".join(chunk.delta or "" for chunk in chunks)


def tools(url: str) -> None:
    tool = FunctionTool.from_defaults(fn=get_weather)
    answer = llm(url).predict_and_call([tool], QUESTION)
    assert str(answer).startswith("sunny in ")


def structured(url: str) -> None:
    answer = llm(url).as_structured_llm(Song).complete("A song")
    assert isinstance(answer.raw, Song)


run(complete, chat, stream_chat, tools, structured)
