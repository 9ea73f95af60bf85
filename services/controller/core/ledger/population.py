"""Where every generation in the journal stands, for the status."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass
from enum import StrEnum

from services.common.exchange import Lengths, MovedBy
from services.controller.core.ledger.entry import JournalEntry


class Standing(StrEnum):
    """Where a generation that has not ended stands."""

    QUEUED = "queued"
    """A head has it, and no token of its epoch is journaled yet."""
    RUNNING = "running"
    PARKED = "parked"
    """Nothing runs: its ids wait for a reader."""


@dataclass(frozen=True, slots=True)
class OpenGeneration:
    """A line of the status."""

    generation_id: str
    epoch: int
    pipeline_id: str
    journaled_tokens: int
    standing: Standing
    unread: bool
    """Its last reader is known to be gone."""
    moved_by: MovedBy = ""
    """How its pipeline came to what it goes on from."""
    inexact_from: Lengths = ()
    """Where ids begin, by choice, that nobody computes from those before them; empty: nowhere."""


@dataclass(frozen=True, slots=True)
class Population:
    """What the journal holds, for the status."""

    open: tuple[OpenGeneration, ...]
    finished: int
    cancelled: int


def population_of(
    entries: Mapping[str, JournalEntry],
    ended: Collection[str],
    cancelled: Collection[str],
    serving: Container[str],
) -> Population:
    """`entries` by name; `ended` names those that finished or were cancelled; `serving` are the
    formations whose heads run generations."""
    open_here = tuple(
        OpenGeneration(
            name,
            entry.epoch,
            entry.pipeline_id,
            sum(entry.lengths),
            _standing(entry, serving),
            entry.unread,
            entry.moved_by,
            entry.inexact_from,
        )
        for name, entry in entries.items()
        if name not in ended
    )
    return Population(open_here, len(ended) - len(cancelled), len(cancelled))


def _standing(entry: JournalEntry, serving: Container[str]) -> Standing:
    never_begun = entry.unread and not entry.begun
    if entry.sealed or never_begun or entry.formation_id not in serving:
        return Standing.PARKED
    return Standing.QUEUED if entry.lengths == entry.base_lengths else Standing.RUNNING
