"""Backends of local nodes as text: native,vllm is a pipeline of each, in turn."""

from __future__ import annotations

from services.common.errors import InvalidArgument
from services.common.nodes import BACKENDS, Backend


def parse_backends(text: str) -> tuple[Backend, ...]:
    """Of the pipelines, in turn. Raises InvalidArgument for what is none."""
    known: dict[str, Backend] = {name: name for name in BACKENDS}
    names = text.split(",")
    if not set(names) <= known.keys():
        raise InvalidArgument(f"{' or '.join(BACKENDS)}, or several of them between commas")
    return tuple(known[name] for name in names)
