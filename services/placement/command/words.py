"""What is wrong with a question to placement, in the words of the command that asks it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from services.common.errors import ShuntError

OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "arrival_rate_rps": "--rate",
        "budget_per_hour": "--budget",
        "ttft_target_s": "--ttft",
        "tpot_target_s": "--tpot",
        "min_on_demand_share": "--on-demand-share",
        "allow_phase_split": "--phase-split",
        "kind": "--objective",
        "device_type": "--gpu",
        "instances": "--cluster",
        "nodes": "--cluster",
        "layers": "--pipeline",
        "stages": "--pipeline",
        "tp_degree": "--pipeline",
    }
)
"""By field of the API, the option that decides it; others are called as their fields are."""


def in_words(error: ShuntError, **otherwise: str) -> str:
    """One line: which option is amiss, and why; `otherwise` has what a command calls otherwise."""
    whole, message = error.field, error.message
    if not whole:
        return message
    field, _, below = whole.partition(".")
    options = {**OPTIONS, **otherwise}
    option = options.get(field) or f"--{field.replace('_', '-')}"
    if below:  # of a file, whose places have no other names
        return f"{option}: {whole}: {message}"
    # A name of several words is the API's alone; one word may be everybody's.
    place = rf"\b{re.escape(field)}\b" if "_" in field else rf"^{re.escape(field)}\b"
    said = re.sub(place, option, message)
    return said if said.startswith(f"{option} ") else f"{option}: {said}"
