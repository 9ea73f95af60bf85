"""What an engine takes beside what the estimator says of its devices: of steps, hops, and starts.

One value: the `engine` section of a calibration, which `shunt plan` reads, and the file that a
simulated scenario names and `shunt simulate fit` writes. The default adds nothing to a step: the
roofline alone, which no engine reaches. A profile that was fitted to a run says by its name which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from services.common.yaml_file import Row, read_yaml

Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]
Factor = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
REPLAYED_ONLY = (
    "seconds of the stages of one recording, which only `shunt simulate replay` plays: what is "
    "planned or simulated has other layers and devices, whose times are the estimator's"
)
"""Why a profile with `stages` is none to plan by."""
Rate = Annotated[float, Field(ge=1e3, le=1e15, allow_inf_nan=False)]


class StageCosts(Row):
    """Seconds of a stage's step as they were measured: so much each, and for each row or position
    more."""

    step_s: Seconds
    row_s: Seconds = 0.0
    """Of a sequence that decodes."""
    prompt_row_s: Seconds = 0.0
    """Of a row of a prompt; what decodes in the same step waits for it."""
    context_s: Seconds = 0.0
    """Of a position behind a row that decodes."""

    def of(self, decoding: float, context: float, prompt_rows: float) -> float:
        """Of so many sequences, each with so many positions behind it, and rows of prompts."""
        each = self.row_s + self.context_s * context
        return self.step_s + each * decoding + self.prompt_row_s * prompt_rows


class BatchBounds(Row):
    """Limits of an engine's batch: its settings."""

    token_budget: int = Field(default=2048, ge=1, le=1 << 20)
    """Rows of prompts in one step at most."""
    max_sequences: int = Field(default=512, ge=1, le=1 << 16)
    """Of a pipeline's batch."""
    min_overlap_sequences: int = Field(default=8, ge=1, le=1 << 16)
    """Of each microbatch that only decodes, where there are several."""


class EngineProfile(BatchBounds):
    """Times in seconds, rates in bytes a second."""

    version: Literal[1] = 1
    name: str = Field(default="estimator", min_length=1, max_length=128)
    decode_scale: Factor = 1.0
    """The estimator's time of the decoded rows of a step is multiplied by this."""
    prefill_scale: Factor = 1.0
    """So is the time that rows of prompts add to it."""
    step_overhead_s: Seconds = 0.0
    """Of a stage, each step."""
    hop_s: Seconds = 0.0
    """Of each hop between stages, beside the estimator's."""
    cycle_s: Seconds = 0.0
    """Of a pipeline, each time that all its sequences get a step: the head's own work."""
    shared: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0
    """By this share cycles take longer for each other pipeline of the same machine that is at work;
    only a replay has pipelines that share one."""
    reading: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)] = 1.0
    """Times that rows of prompts take longer than stages compute them, beside what all steps wait:
    who computes for long is interrupted. Only of a replay."""
    first_s: Seconds = 0.0
    """Of a request, once: door, dispatch and the way back."""
    first_beside_s: Seconds = 0.0
    """So much more for each pipeline of the same machine that is at work when the request comes:
    whom a message wakes waits for a core. Only of a replay, too."""
    start_s: Seconds = 5.0
    """From the start of a node's machine until its process registers."""
    load_s: Seconds = 0.0
    """Of a stage, beside the reading of its weights."""
    load_bytes_per_s: Rate = 1e9
    """Of weights, into one node."""
    load_bytes_per_s_of: dict[str, Rate] = Field(default_factory=dict, max_length=1000)
    """By instance type, where it is another one."""
    stages: dict[str, StageCosts] = Field(default_factory=dict, max_length=10_000)
    """Of stages that were recorded, by kind: only a replay has these very stages."""

    def load_rate(self, instance_type: str) -> float:
        return self.load_bytes_per_s_of.get(instance_type, self.load_bytes_per_s)


def read_profile(path: Path) -> EngineProfile:
    """Raises InvalidArgument, naming file, place and fault, and NotFound."""
    return read_yaml(path, EngineProfile)
