"""The packed form holds every weight once, where the kernels look for it."""

from __future__ import annotations

import errno
import mmap
from pathlib import Path

import pytest
import torch

from services.engine.native.weights import (
    LARGE_PAGE_BYTES,
    Arena,
    interleave,
    pack,
    packed_size_bytes,
)

LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [32, 96, 7, 45])
def test_a_packed_weight_lies_by_column_block_then_k(dtype, rows):
    weight = torch.arange(rows * 16).view(rows, 16).to(dtype)
    out = torch.full((packed_size_bytes(rows, 16, dtype),), 255, dtype=torch.uint8)
    pack(weight, out)
    step = 4 // dtype.itemsize
    packed = out.view(dtype).view(-1, 16 // step, 32, step)
    for n in range(len(packed) * 32):
        row = packed[n // 32, :, n % 32].reshape(-1)
        assert row.equal(weight[n] if n < rows else torch.zeros(16, dtype=dtype))


def test_gate_and_up_alternate_in_sixteens():
    gate, up = torch.arange(64).view(32, 2), -torch.arange(64).view(32, 2)
    both = interleave(gate, up)
    assert both[:16].equal(gate[:16])
    assert both[16:32].equal(up[:16])
    assert both[32:48].equal(gate[16:])
    assert both[48:].equal(up[16:])


def test_an_arena_hands_out_aligned_zeroed_memory_that_does_not_overlap():
    sizes = [1, 63, 64, 65, 1000]
    arena = Arena(sum(map(Arena.rounded, sizes)))
    parts = [arena.take(size) for size in sizes]
    for index, part in enumerate(parts):
        assert part.data_ptr() % 64 == 0
        assert not part.any()
        part.fill_(index)
    assert [part.tolist() for part in parts] == [[i] * size for i, size in enumerate(sizes)]


@pytest.mark.skipif(not LARGE_PAGES.exists(), reason="needs a Linux that has large pages")
@pytest.mark.parametrize("size_bytes", [LARGE_PAGE_BYTES - 1, 2 * LARGE_PAGE_BYTES + 5])
def test_an_arena_that_fills_large_pages_may_have_them(size_bytes):
    part = Arena(size_bytes).take(size_bytes)
    assert part.data_ptr() % LARGE_PAGE_BYTES == 0
    permissions, flags = _mapping(part.data_ptr())
    assert permissions == "rw-p"
    assert ("hg" in flags) == (size_bytes >= LARGE_PAGE_BYTES)
    _, flags = _mapping(part.data_ptr() + size_bytes - 1)
    assert "nh" in flags, "memory that was not asked for would be taken with it"


def test_an_arena_does_without_large_pages_where_the_system_has_none(monkeypatch):
    asked = []

    class Plain(mmap.mmap):
        def madvise(self, *advice):
            asked.append(advice)
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Plain)
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 14, raising=False)
    part = Arena(LARGE_PAGE_BYTES).take(LARGE_PAGE_BYTES)
    assert [advice[0] for advice in asked] == [14]
    assert len(part) == LARGE_PAGE_BYTES
    assert not part.any()


def _mapping(address):
    """Permissions and flags of the mapping that an address lies in."""
    permissions, within = "", False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            first, end = (int(bound, 16) for bound in name.split("-"))
            within, permissions = first <= address < end, values[0]
        elif within and name == "VmFlags:":
            return permissions, values
    raise AssertionError("no such mapping")
