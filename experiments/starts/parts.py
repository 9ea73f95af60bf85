"""The start of a node that takes a lost one's place, by part, from the controller's events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

STEPS = ("node_launched", "node_registered", "stage_loaded")
"""Of one node, before its pipeline is ready."""


@dataclass(frozen=True, slots=True)
class Event:
    """Of the controller's log."""

    at_s: float
    kind: str
    node: str
    pipeline: str


@dataclass(frozen=True, slots=True)
class Parts:
    """From the order until the pipeline serves; seconds."""

    node: str
    ordered_s: float
    process_s: float
    """Until it registers: its machine, process, imports."""
    load_s: float
    """Until it holds its stage: weights read, packed, tested."""
    form_s: float
    """Until its pipeline takes requests: it waits for the last stage, and members join."""

    @property
    def whole_s(self) -> float:
        return self.process_s + self.load_s + self.form_s


def parts_of(events: Iterable[Event]) -> list[Parts]:
    """Of nodes that were ordered for a pipeline, in the order in which they serve."""
    found, seen = list[Parts](), dict[str, dict[str, float]]()
    ordered: dict[str, set[str]] = {}
    for event in sorted(events, key=lambda one: one.at_s):
        if event.kind in STEPS:
            seen.setdefault(event.node, {}).setdefault(event.kind, event.at_s)
        if event.kind == "node_launched" and event.pipeline:
            ordered.setdefault(event.pipeline, set()).add(event.node)
        if event.kind != "pipeline_ready":
            continue
        for node in sorted(ordered.get(event.pipeline, ())):
            at_s = [seen[node][step] for step in STEPS if step in seen[node]]
            if len(at_s) == len(STEPS):
                process_s, load_s = (after - before for before, after in pairwise(at_s))
                found.append(Parts(node, at_s[0], process_s, load_s, event.at_s - at_s[-1]))
                ordered[event.pipeline].remove(node)
    return found
