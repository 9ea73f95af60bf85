"""Planners by name; each module is imported when it is first asked for."""

from __future__ import annotations

from dataclasses import fields, replace
from importlib import import_module

from services.common.errors import InvalidArgument
from services.placement.search.budget import SearchBudget
from services.placement.search.problem import (
    Objective,
    Planner,
    Problem,
    Solution,
    of_the_model,
    told_of_backends,
)

DEFAULT_PLANNER = "shuntserve"
NAMES = (
    "proportional",
    "shuntserve",
    "exact",
    "hexgen",
    "alpaserve",
    "vllm",
    "helix",
    "thunderserve",
    "spotserve",
)


_HEEDED: dict[str, frozenset[str]] = {
    "shuntserve": frozenset(
        {
            "kind",
            "budget_per_hour",
            "ttft_target_s",
            "tpot_target_s",
            "uniform_tp",
            "min_on_demand_share",
        }
    ),
    "vllm": frozenset({"uniform_tp"}),  # it knows no other plans
    "spotserve": frozenset({"uniform_tp"}),
}
_BINDS_NO_ONE = {"recovery_s", "allow_phase_split"}  # a number to reckon with; a permission


def ignored(name: str, objective: Objective) -> str:
    """A field of the objective that this planner would pass over; empty if there is none."""
    plain, heeded = Objective(), _HEEDED.get(name, frozenset()) | _BINDS_NO_ONE
    asked = (one.name for one in fields(objective) if one.name not in heeded)
    return next((one for one in asked if getattr(objective, one) != getattr(plain, one)), "")


def planner(name: str) -> Planner:
    """The planner of that name; it raises InvalidArgument for an objective that it would ignore.
    InvalidArgument, too, for an unknown name."""
    if name not in NAMES:
        raise InvalidArgument(
            f"unknown planner {name[:40]!r}; known: {', '.join(NAMES)}", field="planner"
        )
    search: Planner = import_module(f"services.placement.search.planners.{name}").plan

    def checked(problem: Problem, budget: SearchBudget) -> Solution:
        if field := ignored(name, problem.objective):
            shown = "objective" if field == "kind" else field
            raise InvalidArgument(
                f"the planner {name} takes no account of {shown}: leave it out, or ask"
                f" {DEFAULT_PLANNER}",
                field=shown,
            )
        solution = search(of_the_model(problem), budget)
        told = told_of_backends(problem)
        return replace(solution, reasons=(*solution.reasons, *told)) if told else solution

    return checked
