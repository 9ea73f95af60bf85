"""What a mesh is able to do when nodes come and go, as capabilities, so that each can be left out.

A strategy is one row of the table; cores ask for the capability they are about and know no name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Strategy:
    """A row: what differs from `full`."""

    name: str
    migration: bool = True
    """A generation goes on at its next head from the ids there are; else it starts over from its
    prompt there, and its reader gets what it lacks."""
    concurrent_initialisation: bool = True
    """What follows a formation loads while that one serves; else once that one has ended."""
    uniform: bool = False
    """Every pipeline of a model has as many stages, of equal layers and TP degree, as any other;
    how many, is chosen anew whenever nodes come or go."""
    weights_stay: bool = False
    """No plan has a node load another stage than it has: what plans change is which pipelines
    serve, and their shares."""


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("full"),
        Strategy("migration", concurrent_initialisation=False),
        Strategy("concurrent-init", migration=False),
        Strategy("none", migration=False, concurrent_initialisation=False),
        Strategy("spotserve", uniform=True),
        Strategy("thunderserve", weights_stay=True),
    )
}
FULL = STRATEGIES["full"]
