"""Generations that run in a formation, as whoever has to move them needs to know them."""

from __future__ import annotations

from collections.abc import Mapping

from services.controller.core.departure.move import Stream
from services.controller.core.ledger.entry import JournalEntry
from services.controller.core.ledger.observed import Observed


def streams_of(entries: Mapping[str, JournalEntry], observed: Observed) -> tuple[Stream, ...]:
    """`entries` by name, all of one formation."""
    rates = observed.tokens_per_s(entries)
    return tuple(_stream(name, entry, rates[name]) for name, entry in entries.items())


def _stream(name: str, entry: JournalEntry, tokens_per_s: float) -> Stream:
    request, lengths = entry.request, entry.lengths
    going = (c for c, choice in enumerate(entry.choices) if choice.reason(lengths[c]) is None)
    return Stream(
        name,
        len(request.prompt_ids) + sum(lengths),
        tuple(lengths[choice] for choice in going),
        request.sampling.max_tokens,
        tokens_per_s,
        request.priority,
    )
