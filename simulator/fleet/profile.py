"""What an engine takes beyond what the estimator says: overheads of steps, hops and starts.

The default profile adds nothing to a step: the roofline alone, which no engine reaches. A profile
that was fitted to a run says by its name which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from services.common.yaml_file import Row, read_yaml

Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]
Factor = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=1e3, le=1e15, allow_inf_nan=False)]


class EngineProfile(Row):
    """Times in seconds, rates in bytes a second."""

    name: str = Field(default="estimator", min_length=1, max_length=128)
    decode_scale: Factor = 1.0
    """The estimator's time of the decoded rows of a step is multiplied by this."""
    prefill_scale: Factor = 1.0
    """So is the time that rows of prompts add to it."""
    step_overhead_s: Seconds = 0.0
    """Of a stage, each step."""
    hop_s: Seconds = 0.0
    """Of each hop between stages, beside the estimator's."""
    token_budget: int = Field(default=2048, ge=1, le=1 << 20)
    """Rows of prompts in one step at most."""
    max_sequences: int = Field(default=512, ge=1, le=1 << 16)
    """Of a pipeline's batch."""
    start_s: Seconds = 5.0
    """From the start of a node's machine until its process registers."""
    load_s: Seconds = 0.0
    """Of a stage, beside the reading of its weights."""
    load_bytes_per_s: Rate = 1e9
    """Of weights, into one node."""
    load_bytes_per_s_of: dict[str, Rate] = Field(default_factory=dict, max_length=1000)
    """By instance type, where it is another one."""

    def load_rate(self, instance_type: str) -> float:
        return self.load_bytes_per_s_of.get(instance_type, self.load_bytes_per_s)


def read_profile(path: Path) -> EngineProfile:
    """Raises InvalidArgument, naming file, place and fault, and NotFound."""
    return read_yaml(path, EngineProfile)
