"""Supply over time: how many nodes of a kind there are, from public traces or drawn from a seed."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

from services.controller.providers.market_file import MarketEvent


@dataclass(frozen=True, slots=True)
class Change:
    """From a time on there are so many nodes."""

    at_s: float
    count: int


def drawn(
    seed: str, *, length_s: float, least: int, most: int, calm_s: float
) -> tuple[Change, ...]:
    """A supply that is made up: it begins with the most, and one to three nodes come or go at
    times that are `calm_s` apart in the mean."""
    random = Random(seed)
    at_s, count = 0.0, most
    changes = [Change(0.0, count)]
    while (at_s := at_s + random.expovariate(1 / calm_s)) < length_s:
        near = range(max(least, count - 3), min(most, count + 3) + 1)
        count = random.choice([one for one in near if one != count])
        changes.append(Change(at_s, count))
    return tuple(changes)


def of_segment(path: Path) -> tuple[Change, ...]:
    """A segment of SpotServe's traces: JSON lines of a time in ms, what happens, and to whom."""
    changes, count = list[Change](), 0
    for line in path.read_text().splitlines():
        at_ms, what, told = json.loads(line)
        count += {"add": 1, "remove": -1}.get(what, 0) * len(told["nodes"])
        changes.append(Change(at_ms / 1000, count))
    return settled(changes)


def of_counts(path: Path, *, first: int = 1) -> tuple[Change, ...]:
    """Instances over time, as bamboo's traces have them: seconds and how many there are by then;
    it begins when there are `first`."""
    with path.open(newline="") as file:
        told = [Change(float(at_s), int(count)) for at_s, count in csv.reader(file)]
    return since(told, first)


def of_instances(path: Path, *, first: int = 1) -> tuple[Change, ...]:
    """The whole of SpotServe's trace: a time in ms, whether an instance came or went, and which; it
    begins when there are `first`."""
    changes, count = list[Change](), 0
    with path.open(newline="") as file:
        for at_ms, what, _ in csv.reader(file):
            count += {"add": 1, "remove": -1}[what]
            changes.append(Change(float(at_ms) / 1000, count))
    return since(changes, first)


def since(changes: Sequence[Change], first: int) -> tuple[Change, ...]:
    """Times from when there are so many."""
    began = next(n for n, one in enumerate(changes) if one.count >= first)
    since_s = changes[began].at_s
    return settled(Change(one.at_s - since_s, one.count) for one in changes[began:])


def settled(changes: Iterable[Change]) -> tuple[Change, ...]:
    """Of what happens at one time the last; nothing where nothing changes."""
    by_time = {one.at_s: one.count for one in changes}
    kept = list[Change]()
    for at_s, count in by_time.items():
        if not kept or kept[-1].count != count:
            kept.append(Change(at_s, count))
    return tuple(kept)


def events(offer_id: str, changes: Sequence[Change], notice_s: float) -> tuple[MarketEvent, ...]:
    """Behind the first: nodes that go are taken with this notice."""
    made = list[MarketEvent]()
    for before, one in pairwise(changes):
        made.append(MarketEvent(one.at_s, offer_id, count=one.count))
        if one.count < before.count:
            taken = before.count - one.count
            made.append(MarketEvent(one.at_s, offer_id, take=taken, notice_s=notice_s))
    return tuple(made)
