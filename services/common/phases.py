"""What of a generation a pipeline does; as text: prefill,decode is a phase for each pipeline."""

from __future__ import annotations

from enum import StrEnum

from services.common.errors import InvalidArgument


class PipelinePhase(StrEnum):
    """A pipeline's role in the generations of its model; it decides where they go, and nothing of
    what is loaded."""

    BOTH = "both"
    PREFILL = "prefill"
    """They begin there, and are handed on behind their first token."""
    DECODE = "decode"
    """They go on there."""


def parse_phases(text: str) -> tuple[PipelinePhase, ...]:
    """Of pipelines in the order of their ids. Raises InvalidArgument for what is none."""
    names = text.split(",")
    if not set(names) <= {phase.value for phase in PipelinePhase}:
        raise InvalidArgument(f"{', '.join(PipelinePhase)}: one a pipeline, between commas")
    return tuple(map(PipelinePhase, names))
