"""instructor: https://python.useinstructor.com/"""

from __future__ import annotations

import instructor
from cases import KEY, MODEL, run
from openai import OpenAI
from pydantic import BaseModel

ASKED = [{"role": "user", "content": "John is 25 years old"}]


class Person(BaseModel):
    """Somebody"""

    name: str
    age: int


def read(url: str, mode: instructor.Mode) -> None:
    client = instructor.from_openai(OpenAI(base_url=url, api_key=KEY, max_retries=0), mode=mode)
    person = client.chat.completions.create(
        model=MODEL, messages=ASKED, response_model=Person, max_retries=0
    )
    assert isinstance(person, Person)


def tools(url: str) -> None:
    read(url, instructor.Mode.TOOLS)


def json_schema(url: str) -> None:
    read(url, instructor.Mode.JSON_SCHEMA)


def partial(url: str) -> None:
    client = instructor.from_openai(OpenAI(base_url=url, api_key=KEY, max_retries=0))
    persons = list(
        client.chat.completions.create_partial(model=MODEL, messages=ASKED, response_model=Person)
    )
    assert persons[-1].name is not None
    assert persons[-1].age is not None


run(tools, json_schema, partial)
