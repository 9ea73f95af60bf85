"""llm: https://llm.datasette.io/en/stable/other-models.html#openai-compatible-models"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from cases import MODEL, QUESTION, run

HOME = tempfile.TemporaryDirectory()
os.environ["LLM_USER_PATH"] = HOME.name


def model(url: str) -> object:
    import llm

    said = (
        f"- model_id: here\n  model_name: {MODEL}\n  api_base: {url}\n"
        "  supports_schema: true\n  supports_tools: true\n"
    )
    (Path(HOME.name) / "extra-openai-models.yaml").write_text(said)
    return llm.get_model("here")


def prompt(url: str) -> None:
    assert model(url).prompt(QUESTION, stream=False).text()


def stream(url: str) -> None:
    assert "".join(model(url).prompt(QUESTION, stream=True))


def schema(url: str) -> None:
    import llm

    answer = model(url).prompt("A dog", schema=llm.schema_dsl("name, age int"), stream=False)
    assert set(json.loads(answer.text())) == {"name", "age"}


def tools(url: str) -> None:
    def get_weather(city: str) -> str:
        """The weather in a city"""
        return f"sunny in {city}"

    assert model(url).chain(QUESTION, tools=[get_weather], stream=False).text()


run(prompt, stream, schema, tools)
