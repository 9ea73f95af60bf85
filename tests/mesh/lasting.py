"""Answers that go on while something happens to the mesh, however quick the machine is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from bench import mesh as meshes

MORE = 1.25
TRIES = 4


@dataclass(frozen=True, slots=True)
class Lasting:
    """Requests, and their undisturbed records."""

    tokens: int
    """Of each answer."""
    bodies: list[dict[str, Any]]
    expected: list[meshes.StreamRecord]


def sampled(tokens: int) -> list[dict[str, Any]]:
    """Four requests for so many tokens. Greedy ones may be guessed, and over at any time."""
    return [body | {"ignore_eos": True} for body in meshes.request_bodies(tokens)[1::2]]


async def lasting(
    client: httpx.AsyncClient,
    url: str,
    tokens: int,
    lasts_s: float,
    asked: Callable[[int], list[dict[str, Any]]] = sampled,
    measure: Callable[[Sequence[float]], float] = min,
) -> Lasting:
    """Requests of so many tokens or, where their answers are over too soon, of more: `measure` of
    what they last, in seconds from an answer's first event to its last, is `lasts_s` at least.
    Raises RuntimeError where that cannot be had."""
    for _ in range(TRIES):
        bodies = asked(tokens)
        expected = await meshes.undisturbed(client, url, bodies)
        lasted_s = measure([one.arrivals_s[-1] - one.arrivals_s[0] for one in expected])
        if lasted_s >= lasts_s:
            return Lasting(tokens, bodies, expected)
        tokens = math.ceil(tokens * MORE * lasts_s / lasted_s)
    raise RuntimeError(f"{tokens} tokens would not last for {lasts_s} s")
