"""Candidate pipelines: multisets of stage options, their bounds, their best order and split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations

import numpy as np

from services.placement.estimate.roofline import Array
from services.placement.search.bounds import partial_rates, rate_bounds, terms
from services.placement.search.budget import UNLIMITED, SearchBudget
from services.placement.search.rates import Ints, Option, RateTables
from services.placement.search.splits import Split, best_split

COARSE = 20
FINE = 12
SHORT = 6
EXCHANGES = 2
VALLEY_KINDS = 4
LIKELY = 0.7  # neighbouring batches of the coarse grid differ by up to 0.3
LIKELY_ORDERS = 20
CHUNK_ELEMENTS = 1 << 21
ORDERS_ELEMENTS = 1 << 17
Members = tuple[int, ...]  # options, ascending


@dataclass(frozen=True)
class Candidate:
    """A pipeline in order with its split."""

    order: Members
    split: Split


class Columns:
    """Bounds and best splits of multisets of options, each computed once.

    When the budget is over guides are 0 for what was not reached, and a split is the best of the
    orders that were looked at, one at least. Bounds are always computed.
    """

    def __init__(
        self, tables: RateTables, tolerance: float, budget: SearchBudget = UNLIMITED
    ) -> None:
        self.tables, self._tolerance, self._budget = tables, tolerance, budget
        self._solved: dict[Members, Candidate | None] = {}
        self._network = [option.cost.network_bytes_per_s for option in tables.options]
        first: dict[object, int] = {}
        self._like = np.array(
            [
                first.setdefault((option.cost.kind.performance, option.tp), index)
                for index, option in enumerate(tables.options)
            ]
        )

    @property
    def options(self) -> tuple[Option, ...]:
        return self.tables.options

    def _coarse(self) -> Ints:
        count = len(self.tables.batches)
        grid: Ints = np.unique(np.geomspace(1, count, COARSE).astype(np.int64)) - 1
        return grid

    def guides(self, rows: Ints) -> Array:
        """Guides [rows] for unfinished pipelines, coarse in the batch."""
        table, at = self.tables.of(rows.shape[1]), self._coarse()[None, :]
        rows, which = self._unlike(rows)
        rates = self._chunked(
            rows, at.shape[1], lambda part: partial_rates(table, part, _spread(at, part))
        )
        return _most(rates)[which]

    def bounds(self, rows: Ints, *, every_tail: bool) -> Array:
        """Near upper bounds [rows]: a coarse grid of batches, finer around the best.

        Unless `every_tail` is tried the slowest network is last, where it hops to no one.
        """
        if every_tail:
            return self._over_tails(rows, self._near)
        network = np.asarray(self._network)
        order = np.argsort(-network[rows], axis=1, kind="stable")
        rows, which = self._unlike(np.take_along_axis(rows, order, axis=1))
        return self._near(rows)[which]

    def sure_bounds(self, rows: Ints, *, dense: bool) -> Array:
        """True upper bounds [rows] over all orders and batches; closer when `dense`."""
        return self._over_tails(rows, self._dense if dense else self._blocks)

    def small_batch_bounds(self, rows: Ints) -> Array:
        """True upper bounds [rows] over batches of fewer sequences than stages."""
        few = np.flatnonzero(self.tables.batches < rows.shape[1])[None, :]
        if not few.size:
            return np.zeros(len(rows))
        return self._over_tails(rows, lambda moved: _most(self._ceilings(moved, few)))

    def _over_tails(self, rows: Ints, bound: Callable[[Ints], Array]) -> Array:
        """The best over every choice of the last stage."""
        stages = rows.shape[1]
        moved = [np.roll(rows, -shift, axis=1) for shift in range(stages)]
        distinct, which = self._unlike(np.concatenate(moved))
        best: Array = bound(distinct)[which].reshape(stages, -1).max(axis=0)
        return best

    def _unlike(self, rows: Ints) -> tuple[Ints, Ints]:
        """Rows that differ in more than price, or in the order of all stages but the last; and
        which of them each row is."""
        alike = self._like[rows]
        alike[:, :-1].sort(axis=1)
        distinct, which = np.unique(alike, axis=0, return_inverse=True)
        return distinct, which

    def _near(self, rows: Ints) -> Array:
        coarse = self._coarse()[:: 2 if len(self._coarse()) > FINE else 1]
        coarse = np.union1d(coarse, [len(self.tables.batches) - 1])
        rough = self._ceilings(rows, coarse[None, :])
        best = rough.argmax(axis=1)
        low = coarse[np.maximum(best - 1, 0)]
        high = coarse[np.minimum(best + 1, len(coarse) - 1)]
        steps = np.linspace(0, 1, FINE)
        fine = np.rint(low[:, None] + (high - low)[:, None] * steps).astype(np.int64)
        return np.maximum(_most(rough), _most(self._ceilings(rows, fine)))

    def _dense(self, rows: Ints) -> Array:
        return _most(self._ceilings(rows, np.arange(len(self.tables.batches))[None, :]))

    def _blocks(self, rows: Ints) -> Array:
        ends = self._coarse()
        starts = np.concatenate([[0], ends[:-1] + 1])
        return _most(self._ceilings(rows, ends[None, :], starts[None, :]))

    def _ceilings(self, rows: Ints, at: Ints, room_at: Ints | None = None) -> Array:
        table = self.tables.of(rows.shape[1])
        size = max(1, CHUNK_ELEMENTS // (rows.shape[1] * at.shape[1]))
        pieces = []
        for i in range(0, len(rows), size):
            part = rows[i : i + size]
            where = _spread(at[i : i + size] if len(at) > 1 else at, part)
            room = None if room_at is None else _spread(room_at, part)
            t = terms(table, part, where, ordered=False, room_at=room)
            pieces.append(rate_bounds(table, t, where, close=True))
        return np.concatenate(pieces)

    def _chunked(self, rows: Ints, width: int, work: Callable[[Ints], Array]) -> Array:
        size = max(1, CHUNK_ELEMENTS // (rows.shape[1] * width))
        out = np.zeros((len(rows), width))
        for i in range(0, len(rows), size):
            if self._budget.expired():
                break
            out[i : i + size] = work(rows[i : i + size])
        return out

    def solve(self, members: Members) -> Candidate | None:
        """A very good order with its best split: every order for short pipelines; else every head
        and tail, the others falling to the slowest network and rising from it, so that few hops
        are slowed; then exchanges of two stages while they help."""
        if members not in self._solved:
            if len(members) <= SHORT:
                found = self.best_of(self._distinct(permutations(members)))
            else:
                found = self.best_of(self._distinct(self._orders(members)), likely=True)
                for _ in range(EXCHANGES if found else 0):
                    assert found is not None
                    better = self.best_of(
                        self._distinct(_exchanged(found.order)),
                        found.split.rate_rps,
                        likely=True,
                    )
                    if better is None:
                        break
                    found = better
            self._solved[members] = found
        return self._solved[members]

    def _orders(self, members: Members) -> Iterator[Members]:
        if len(members) == 1:
            yield members
            return
        for head in set(members):
            rest = list(members)
            rest.remove(head)
            for tail in set(rest):
                middle = list(rest)
                middle.remove(tail)
                for falling in self._valleys(set(middle)):
                    down = [o for o in middle if o in falling]
                    up = [o for o in middle if o not in falling]
                    down.sort(key=lambda o: -self._network[o])
                    up.sort(key=lambda o: self._network[o])
                    yield (head, *down, *up, tail)

    def _valleys(self, kinds: set[int]) -> Iterator[set[int]]:
        """Which options fall towards the slowest network before the others rise from it."""
        several = sorted(kinds)
        if len(several) > VALLEY_KINDS:
            yield from (set(), kinds)
            return
        for size in range(len(several) + 1):
            for chosen in combinations(several, size):
                yield set(chosen)

    def best_of(
        self, orders: Iterable[Members], floor_rps: float = 0.0, *, likely: bool = False
    ) -> Candidate | None:
        """The best split over these orders of one multiset, if any beats `floor_rps`.

        `likely` leaves out orders that a coarse grid of batches says are worse.
        """
        rows = np.asarray(sorted(orders))
        if not len(rows):
            return None
        table = self.tables.of(rows.shape[1])
        ceilings = self._rough(rows)
        ranked = np.argsort(-ceilings, kind="stable")[: LIKELY_ORDERS if likely else None]
        together = max(1, ORDERS_ELEMENTS // (rows.shape[1] * len(table.batches)))
        best: Candidate | None = None
        start, size = 0, 1 if floor_rps == 0 else together
        while start < len(ranked):
            some = ranked[start : start + size]
            reached = best.split.rate_rps if best else floor_rps
            if likely:
                some = some[ceilings[some] >= reached * LIKELY]
            if not len(some) or (start and self._budget.expired()):
                break
            found = best_split(table, rows[some], reached, self._tolerance)
            if found is not None:
                row, split = found
                best = Candidate(tuple(int(o) for o in rows[some[row]]), split)
            start, size = start + size, together
        return best

    def _rough(self, rows: Ints) -> Array:
        """What each order may carry [rows], on a coarse grid of batches."""
        table, grid = self.tables.of(rows.shape[1]), self._coarse()

        def work(part: Ints) -> Array:
            at = np.broadcast_to(grid, (len(part), len(grid)))
            return rate_bounds(table, terms(table, part, at, ordered=True), at, close=False)

        return _most(self._chunked(rows, len(grid), work))

    def solve_exactly(self, members: Members) -> Candidate | None:
        """The best order of all with its best split, unless the budget is over meanwhile."""
        found = self.solve(members)
        orders = self._distinct(permutations(members))
        better = self.best_of(orders, found.split.rate_rps if found else 0.0)
        if better is not None:
            self._solved[members] = better
        return self._solved[members]

    def _distinct(self, orders: Iterable[Members]) -> set[Members]:
        """One order of each set that pays the same for its ends and its hops."""
        network = self._network
        kept: dict[object, Members] = {}
        for order in orders:
            if kept and self._budget.expired():
                break
            hops = sorted((a, min(network[a], network[b])) for a, b in pairwise(order))
            kept.setdefault((order[0], order[-1], tuple(hops)), order)
        return set(kept.values())


def _exchanged(order: Members) -> set[Members]:
    """Every order that differs by one exchange."""
    found = set()
    for i, j in combinations(range(len(order)), 2):
        if order[i] != order[j]:
            changed = list(order)
            changed[i], changed[j] = changed[j], changed[i]
            found.add(tuple(changed))
    return found


def _most(values: Array) -> Array:
    best: Array = values.max(axis=1)
    return best


def _spread(at: Ints, rows: Ints) -> Ints:
    return np.broadcast_to(at, (len(rows), at.shape[1]))
