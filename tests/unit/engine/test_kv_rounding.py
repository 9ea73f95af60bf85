from __future__ import annotations

from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from services.engine.core.kv_layout import Element, KvLayout
from services.engine.kv_rounding import rounded, widened

WIDTH, POSITIONS = 2, 2
SIZES = {"bf16": 2, "fp32": 4}
MOST = {"bf16": float(torch.finfo(torch.bfloat16).max), "fp32": float(np.finfo(np.float32).max)}
LEAST = 2.0**-149 * 127
"""A scale has no more digits there."""


def layout(element: Element, width: int = WIDTH) -> KvLayout:
    head_bytes = 2 * width * POSITIONS * SIZES[element]
    return KvLayout("rows", 3, head_bytes, POSITIONS, "exact-tiny", element)


def bytes_of(numbers: Any, element: Element) -> bytes:
    """By torch, which rounds by itself."""
    held = torch.from_numpy(np.asarray(numbers, dtype=np.float32))
    return (held.bfloat16() if element == "bf16" else held).view(torch.uint8).numpy().tobytes()


def numbers_of(data: bytes, element: Element) -> Any:
    dtype = torch.bfloat16 if element == "bf16" else torch.float32
    return torch.frombuffer(bytearray(data), dtype=dtype).double().numpy()


NUMBERS = arrays.arrays(
    np.float32,
    (5, 2, WIDTH * POSITIONS),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    | st.floats(-4, 4, width=32)
    | st.sampled_from([0.0, -0.0, 1e-45, 3.4028235e38, -3.4028235e38]),
)


@pytest.mark.parametrize("element", ["bf16", "fp32"])
@given(numbers=NUMBERS)
def test_an_element_is_off_by_half_a_step_and_its_own_rounding(
    element: Element, numbers: Any
) -> None:
    own = np.clip(numbers, -MOST[element], MOST[element])
    data, wide = bytes_of(own, element), layout(element)
    exact = numbers_of(data, element).reshape(own.shape)
    small = rounded(wide, data)
    assert small is not None
    narrow = wide.rounded
    assert narrow is not None
    assert len(small) == 5 * narrow.head_bytes
    back = numbers_of(widened(wide, small), element).reshape(own.shape)
    most = np.abs(exact).max(axis=2, keepdims=True)
    digits = 2.0**-8 if element == "bf16" else 2.0**-23
    bound = most / 127 * (0.5 + 1e-4) + most * digits + LEAST
    assert np.isfinite(back).all()
    assert (np.abs(back - exact) <= bound).all()
    assert (np.sign(back) * np.sign(exact) >= 0).all()


@pytest.mark.parametrize("element", ["bf16", "fp32"])
@given(numbers=NUMBERS)
def test_what_was_rounded_is_rounded_to_the_same_steps_again(
    element: Element, numbers: Any
) -> None:
    wide = layout(element)
    own = np.clip(numbers, -MOST[element] / 2, MOST[element] / 2)
    own[np.abs(own) < 1e-30] = 0
    once = rounded(wide, bytes_of(own, element))
    assert once is not None
    again = rounded(wide, widened(wide, once))
    assert again is not None
    steps = [np.frombuffer(x, np.int8).reshape(5, -1)[:, 8:] for x in (once, again)]
    assert (steps[0] == steps[1]).all()


@pytest.mark.parametrize("element", ["bf16", "fp32"])
@pytest.mark.parametrize("number", [inf, -inf, nan])
def test_what_is_no_number_is_not_rounded(element: Element, number: float) -> None:
    numbers = np.ones((2, 2, WIDTH * POSITIONS), np.float32)
    assert rounded(layout(element), bytes_of(numbers, element)) is not None
    numbers[1, 0, 2] = number
    assert rounded(layout(element), bytes_of(numbers, element)) is None


@pytest.mark.parametrize(("element", "share"), [("bf16", 0.502), ("fp32", 0.251)])
def test_a_block_has_half_of_its_bytes_or_a_quarter(element: Element, share: float) -> None:
    wide = KvLayout("rows", 3, 2 * 64 * 16 * SIZES[element], 16, "exact-tiny", element)
    narrow = wide.rounded
    assert narrow is not None
    assert narrow.layer_bytes / wide.layer_bytes == pytest.approx(share, abs=0.002)


def test_keys_and_values_of_each_head_have_scales_of_their_own() -> None:
    numbers = np.ones((2, 2, WIDTH * POSITIONS), np.float32)
    numbers[0, 1], numbers[1, 0], numbers[1, 1] = 1e-6, 1e6, 3
    wide = layout("fp32")
    small = rounded(wide, bytes_of(numbers, "fp32"))
    assert small is not None
    back = numbers_of(widened(wide, small), "fp32").reshape(numbers.shape)
    assert back == pytest.approx(numbers, rel=1e-6)
