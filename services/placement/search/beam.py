"""Beam search over multisets of stages: which nodes, at which TP degree, share a pipeline.

A state is a multiset of stage options; layers need no state of their own, for the best layers of
given stages follow from filling them to a common time (bounds.py). States of one length compete by
their rate for what their nodes are worth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.placement.estimate.roofline import Array
from services.placement.search.budget import SearchBudget
from services.placement.search.columns import Columns, Members
from services.placement.search.field import SearchField
from services.placement.search.rates import Ints

PATIENCE = 4
FEW = 400
HURRY = 60


@dataclass(frozen=True)
class Pool:
    """Multisets with their bounds in requests a second."""

    members: tuple[Members, ...]
    bound: Array
    whole: bool  # nothing was left out


def class_values(field: SearchField, budget: SearchBudget) -> Array:
    """What a node of each class is worth: its share of the best pipeline of its kind alone. Little
    for one that was not looked at before the budget was over."""
    values = np.zeros(len(field.stock.kinds))
    longest = field.columns.tables.longest
    lengths = sorted({1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 26, 32, 40, longest})
    for o, option in enumerate(field.options):
        if budget.expired():
            break
        for length in (n for n in lengths if n <= longest):
            guide = field.columns.guides(np.full((1, length), o))[0] / length
            values[option.kind] = max(values[option.kind], float(guide))
    floor: Array = np.maximum(values, values.max() * 1e-3 + 1e-12)
    return floor


def search(field: SearchField, values: Array, width: int, keep: int, budget: SearchBudget) -> Pool:
    """Up to `keep` multisets worth building, by growing the best `width` a stage at a time."""
    columns, counts = field.columns, field.counts
    kinds = np.array([option.kind for option in field.options])
    worth = values[kinds]
    level = np.arange(len(field.options))[:, None]
    found: list[tuple[Ints, Array]] = []
    best_density, barren, whole = 0.0, 0, True
    for length in range(1, columns.tables.longest + 1):
        if length > 1:
            level = _grow(level, kinds, counts, field.backends)
        if not len(level) or budget.expired():
            whole = whole and not len(level)
            break
        whole = whole and len(level) <= width
        guide = columns.guides(level) / worth[level].sum(axis=1)
        kept = np.argsort(-guide, kind="stable")[:width]
        level, guide = level[kept], guide[kept]
        full = _holds(columns, level) & (guide > 0)
        finished, density = level[full], guide[full]
        if len(finished):
            top = float(density.max())
            barren = 0 if top > best_density * 1.0005 else barren + 1
            best_density = max(best_density, top)
            found.append((finished, density))
        if barren >= PATIENCE and len(level) == width:
            break
    if not found:
        return Pool((), np.zeros(0), whole)
    ranked = np.sort(np.concatenate([density for _, density in found]))[::-1]
    least = ranked[min(HURRY if budget.expired() else keep, len(ranked)) - 1]
    members: list[Members] = []
    bounds: list[Array] = []
    for rows, density in found:
        kept_rows = rows[density >= least]
        if len(kept_rows):
            members.extend(tuple(int(o) for o in row) for row in kept_rows)
            bounds.append(columns.bounds(kept_rows, every_tail=len(ranked) <= FEW))
    return Pool(tuple(members), np.concatenate(bounds), whole and len(ranked) <= keep)


def joined(one: Pool, other: Pool) -> Pool:
    """Both pools, each multiset once."""
    known = set(one.members)
    fresh = [i for i, members in enumerate(other.members) if members not in known]
    members = (*one.members, *(other.members[i] for i in fresh))
    return Pool(members, np.concatenate([one.bound, other.bound[fresh]]), one.whole)


def _holds(columns: Columns, rows: Ints) -> Array:
    """Whether the stages of each row hold every layer at a batch of one."""
    table = columns.tables.of(rows.shape[1])
    most = np.maximum.reduce([table.most[False, False][:, 0], table.most[False, True][:, 0]])
    held: Array = most[rows].sum(axis=1) >= table.layers
    return held


def _grow(level: Ints, kinds: Ints, counts: Ints, backends: Ints) -> Ints:
    """Every row with one more option, sorted, each multiset once, within the inventory, and all of
    one backend, of which `backends` has each option's."""
    grown = []
    for o in range(len(kinds)):
        room = (kinds[level] == kinds[o]).sum(axis=1) < counts[kinds[o]]
        more = level[room & (backends[level[:, 0]] == backends[o])]
        grown.append(np.concatenate([more, np.full((len(more), 1), o)], axis=1))
    rows = np.sort(np.concatenate(grown), axis=1)
    unique: Ints = np.unique(rows, axis=0)
    return unique
