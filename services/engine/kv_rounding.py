"""Keys and values of blocks in int8, and back: symmetric, with a scale for each head's keys and one
for its values (Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, section 2.1, with no offset).

An element x becomes q = round(x / s) in [-127, 127], with s the largest magnitude beside it over
127, and comes back as q s: it is off by no more than s / 2 and its own rounding.
"""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from services.engine.core.kv_layout import SCALE_BYTES, KvLayout
from services.engine.core.shelf import Shelf

_MOST = 127
_BF16_SHIFT = 16
"""A bf16 is the upper half of an fp32."""


def rounded(layout: KvLayout, data: bytes | memoryview) -> bytes | None:
    """What whole heads' parts of this layout, as many as there are, become in `layout.rounded`;
    None where one holds an infinity, or what is no number."""
    numbers = _numbers(layout, np.frombuffer(data, dtype=np.uint8))  # [heads, 2, elements]
    most = np.abs(numbers).max(axis=2, keepdims=True)  # [heads, 2, 1]
    if not np.isfinite(most).all():
        return None
    scales = (most / np.float32(_MOST)).astype(np.float32)
    over = scales.astype(np.float64) * _MOST > most  # it would come back as more than there is
    scales = np.where(over, np.nextafter(scales, np.float32(0)), scales)
    steps = np.rint(numbers / np.where(scales > 0, scales, 1))
    elements = np.clip(steps, -_MOST, _MOST).astype(np.int8)
    heads = len(numbers)
    parts = (
        scales.astype("<f4").reshape(heads, 2).view(np.uint8),
        elements.reshape(heads, -1).view(np.uint8),
    )
    return np.concatenate(parts, axis=1).tobytes()


def widened(layout: KvLayout, data: bytes | memoryview) -> bytes:
    """What parts of heads in `layout.rounded`, as many as there are, become in this layout."""
    narrow = layout.rounded
    assert narrow is not None
    parts = np.frombuffer(data, dtype=np.uint8).reshape(-1, narrow.head_bytes)
    scales = parts[:, : 2 * SCALE_BYTES].copy().view("<f4")[:, :, None]  # [heads, 2, 1]
    elements = parts[:, 2 * SCALE_BYTES :].view(np.int8).reshape(len(parts), 2, -1)
    return _elements(layout, elements * scales)


async def kept_rounded(
    shelf: Shelf, layout: KvLayout, name: bytes, layers: range, now_s: float
) -> list[tuple[range, bytes | memoryview]] | None:
    """What a shelf has of a block's layers in `layout.rounded`, each layer once: what it keeps so,
    and what it keeps as it was computed, rounded. None where that cannot be."""
    narrow = layout.rounded
    if narrow is None:
        return None
    found: list[tuple[range, bytes | memoryview]] = []
    found += shelf.find(narrow.name, name, layers, now_s)
    there = {layer for own, _ in found for layer in own}
    for own, data in list(shelf.find(layout.name, name, layers, now_s)):
        if there.isdisjoint(own):
            small = await asyncio.to_thread(rounded, layout, data)  # others are served meanwhile
            if small is None:
                return None
            found.append((own, small))
    return found


def _numbers(layout: KvLayout, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """fp32 [heads, 2, elements]."""
    parts = data.reshape(-1, layout.head_bytes)
    if layout.element == "fp32":
        numbers = parts.view("<f4")
    else:
        numbers = (parts.view("<u2").astype(np.uint32) << _BF16_SHIFT).view(np.float32)
    return numbers.reshape(len(parts), 2, -1)


def _elements(layout: KvLayout, numbers: NDArray[np.float32]) -> bytes:
    """As the layout has them; to bf16 the nearest, of two the even one."""
    if layout.element == "fp32":
        return numbers.astype("<f4").tobytes()
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    even = (bits >> _BF16_SHIFT) & 1
    return ((bits + 0x7FFF + even) >> _BF16_SHIFT).astype("<u2").tobytes()
