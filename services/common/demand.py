"""What is asked of a model at one router, as routers count it and the controller is told it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """Counts since the router's start. A request with several choices counts as so many."""

    requests: int = 0
    """That began."""
    input_tokens: int = 0
    """Of their prompts."""
    answers: int = 0
    """That have ended."""
    output_tokens: int = 0
    """Of those answers."""
    open: int = 0
    """Requests that wait for a pipeline, or are being answered, now."""
