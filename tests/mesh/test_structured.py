from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from typing import Any

import httpx

from bench import mesh as meshes

CITIES = {
    "type": "object",
    "properties": {
        "cities": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 12},
                    "people": {"type": "integer", "minimum": 0, "maximum": 99999999},
                },
                "required": ["name", "people"],
                "additionalProperties": False,
            },
            "minItems": 5,
            "maxItems": 5,
        }
    },
    "required": ["cities"],
    "additionalProperties": False,
}
FORMS: list[dict[str, Any]] = [
    {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "cities", "schema": CITIES, "strict": True},
        }
    },
    {"structured_outputs": {"regex": r"([a-z]{3,9} ){30}end"}},
]


def follows(form: dict[str, Any], text: str) -> bool:
    if "structured_outputs" in form:
        return re.fullmatch(form["structured_outputs"]["regex"], text) is not None
    cities = json.loads(text)["cities"]
    return len(cities) == 5 and all(
        list(city) == ["name", "people"]
        and len(city["name"]) <= 12
        and 0 <= city["people"] <= 99999999
        for city in cities
    )


async def test_an_answer_follows_its_form_through_a_kill_and_stays_the_same(
    ready: meshes.Mesh, client: httpx.AsyncClient
) -> None:
    ways: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 0.9, "seed": 5}]
    question = [{"role": "user", "content": "Name five cities and their people."}]
    asked = [(form, form | way | {"messages": question}) for form in FORMS for way in ways]
    bodies = [body | {"max_tokens": 400} for _, body in asked]
    expected = await meshes.undisturbed(client, ready.url(), bodies)
    records = [meshes.StreamRecord() for _ in bodies]
    async with asyncio.TaskGroup() as readers:
        for body, record in zip(bodies, records, strict=True):
            readers.create_task(meshes.stream_chat(client, ready.url(), body, record))
        await meshes.until(lambda: all(len(record.arrivals_s) > 5 for record in records))
        status = await ready.status()
        heads = {pipeline["stages"][0]["node"] for pipeline in status["pipelines"]}
        pids = [node["pid"] for node in status["nodes"] if node["id"] in heads]
        os.kill(pids[0], signal.SIGKILL)
    for (form, _), record, wanted in zip(asked, records, expected, strict=True):
        assert record.complete, record.error
        assert record.finish_reason == "stop"
        assert (record.text, record.usage) == (wanted.text, wanted.usage)
        assert follows(form, record.text), record.text
    await ready.until_ready(2)
