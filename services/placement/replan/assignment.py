"""Kuhn-Munkres: the cheapest matching of rows to columns, by shortest augmenting paths."""

from __future__ import annotations

import numpy as np

from services.placement.estimate.roofline import Array
from services.placement.search.rates import Ints


def assign(cost: Array) -> Ints:
    """The column of each row, for a cost [rows, columns] with at least as many columns as rows."""
    rows, columns = cost.shape
    row_price, column_price = np.zeros(rows + 1), np.zeros(columns + 1)
    matched = np.zeros(columns + 1, dtype=np.int64)  # row of each column, 1-based, 0 for none
    for row in range(1, rows + 1):
        matched[0] = row
        at = 0
        slack = np.full(columns + 1, np.inf)
        before = np.zeros(columns + 1, dtype=np.int64)
        used = np.zeros(columns + 1, dtype=bool)
        while True:
            used[at] = True
            free = ~used[1:]
            reduced = cost[matched[at] - 1] - row_price[matched[at]] - column_price[1:]
            better = free & (reduced < slack[1:])
            slack[1:][better] = reduced[better]
            before[1:][better] = at
            nearest = int(np.argmin(np.where(free, slack[1:], np.inf))) + 1
            step = slack[nearest]
            row_price[matched[used]] += step
            column_price[used] -= step
            slack[1:][free] -= step
            at = nearest
            if matched[at] == 0:
                break
        while at:
            matched[at] = matched[before[at]]
            at = int(before[at])
    out = np.zeros(rows, dtype=np.int64)
    for column in range(1, columns + 1):
        if matched[column]:
            out[matched[column] - 1] = column - 1
    return out
