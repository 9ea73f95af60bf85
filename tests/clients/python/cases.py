"""Runs a client's cases against the router that the command line names, and tells what became of
each: a line of JSON, null where it did what its first page shows, else why not."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

MODEL = "tiny"
KEY = "none"
QUESTION = "What is the weather in Paris?"
Case = Callable[[str], Any]
"""Given the base URL, `http://HOST:PORT/v1`."""


def run(*cases: Case) -> None:
    """Each by its name."""
    url = sys.argv[1]
    print(json.dumps({case.__name__: _outcome(case, url) for case in cases}))


def _outcome(case: Case, url: str) -> str | None:
    try:
        told = case(url)
        if inspect.isawaitable(told):
            asyncio.run(_awaited(told))
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return None


async def _awaited(told: Any) -> None:
    await told
