"""Products that give a row the same bits whatever rows are beside it, by a library that does not.

cuBLAS takes a kernel by the number of rows, and kernels differ in the order in which they add up.
So products of several numbers of rows are tried when a weight is packed, and those that agree bit
for bit are the only ones it is ever multiplied in; what lacks to one of them is filled with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
"""Numbers of rows that are tried."""
STEP = 256
"""Beyond so many rows, zeros for the next power of two cost more than a second product."""
MOST_NUMBERS = 1 << 26
"""Of a result that is tried, beside which a model must fit."""
TRIED = 1 << 24
"""Numbers that are compared: of an order of sums, rounding to bf16 shows one in thousands."""

Multiply = Callable[[Tensor, Tensor], Tensor]  # x [rows, in], weight [out, in]


def padded_rows(rows: int) -> int:
    """Rows to compute for so many: a power of two, or whole steps."""
    if rows > STEP:
        return (rows + STEP - 1) // STEP * STEP
    return next(size for size in SIZES if size >= rows)


def pieces(rows: int, sizes: Sequence[int]) -> list[int]:
    """Which of the sizes, given in ascending order, make up so many rows; the last one may reach
    beyond them."""
    found: list[int] = []
    while rows > 0:
        wide = next((size for size in sizes if rows <= size <= max(rows, STEP)), 0)
        size = wide or max((size for size in sizes if size <= rows), default=sizes[0])
        found.append(size)
        rows -= size
    return found


def agreeing_sizes(weight: Tensor, multiply: Multiply = F.linear) -> tuple[int, ...]:
    """The best family of SIZES that agree bit for bit, with one another and whatever a row's
    place."""
    count = next(size for size in SIZES[::-1] if size * len(weight) <= TRIED or size == SIZES[0])
    generator = torch.Generator(weight.device).manual_seed(1)
    shape = (count, weight.shape[1])
    rows = torch.randn(shape, generator=generator, device=weight.device).to(weight.dtype)
    families: list[tuple[Tensor, list[int]]] = []
    for size in SIZES:
        if size > SIZES[0] and size * len(weight) > MOST_NUMBERS:
            break
        found = _at_every_place(rows, size, lambda x: multiply(x, weight))
        for result, members in families:
            if found is not None and torch.equal(result, found):
                members.append(size)
                break
        else:
            if found is not None:
                families.append((found, [size]))
    return tuple(min((members for _, members in families), key=_cost, default=SIZES[:1]))


def _at_every_place(rows: Tensor, size: int, multiply: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Results of the rows in products of `size`, if they are the same at two places."""
    among = rows.repeat(max(size // len(rows), 1), 1)
    results = []
    for x in (among, among.flip(0)):
        results.append(
            torch.cat([multiply(part) for part in x.split_with_sizes(len(x) // size * [size])])
        )
    result, turned = results[0], results[1].flip(0)
    copies = result.view(-1, len(rows), result.shape[1])
    same = torch.equal(result, turned) and bool((copies == copies[0]).all())
    return copies[0].clone() if same else None


def _cost(sizes: Iterable[int]) -> float:
    """Of few and of many rows: up to a step of them a product takes as long as to read weights."""
    found = tuple(sizes)
    return sum(
        sum(max(size, STEP) for size in pieces(rows, found)) / max(rows, STEP) for rows in SIZES
    )


class Product:
    """x [rows, in], as many rows as `padded_rows` says, to [rows, out]; each row's result is its
    own."""

    def __init__(self, weight: Tensor, bias: Tensor | None, sizes: Sequence[int]) -> None:
        self._weight, self._bias, self._sizes = weight, bias, sizes
        self.packed_bytes = weight.numel() * weight.element_size()

    def __call__(self, x: Tensor) -> Tensor:
        y = self._product(x)
        return y if self._bias is None else y + self._bias

    def _product(self, x: Tensor) -> Tensor:
        if len(x) in self._sizes:
            return F.linear(x, self._weight)
        found = pieces(len(x), self._sizes)
        wide = F.pad(x, (0, 0, 0, sum(found) - len(x)))
        results = [F.linear(part, self._weight) for part in torch.split(wide, found)]
        return torch.cat(results)[: len(x)]
