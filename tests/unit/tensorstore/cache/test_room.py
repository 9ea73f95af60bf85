"""The bound of a cache holds whatever is in progress, and nobody loses what he holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.errors import ResourceExhausted
from services.tensorstore.cache.hold_locks import HoldLocks
from services.tensorstore.cache.room import BLOCK_BYTES, CacheRoom

LIMIT = 10 * BLOCK_BYTES
A, B, C = (digit * 64 for digit in "abc")


@pytest.fixture
def locks(tmp_path: Path) -> HoldLocks:
    return HoldLocks(tmp_path / "holds")


@pytest.fixture
def room(tmp_path: Path, locks: HoldLocks) -> CacheRoom:
    return CacheRoom(tmp_path, LIMIT, locks)


def put(root: Path, digest: str, blocks: int) -> Path:
    path = root / "objects" / digest[:2] / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * blocks * BLOCK_BYTES)
    return path


def test_room_that_is_set_aside_is_not_given_twice(room: CacheRoom) -> None:
    room.reserve({A: 6 * BLOCK_BYTES})
    with pytest.raises(ResourceExhausted, match=str(LIMIT)):
        room.reserve({B: 5 * BLOCK_BYTES})
    room.reserve({B: 4 * BLOCK_BYTES})
    room.release(A, 6 * BLOCK_BYTES)
    room.reserve({C: 6 * BLOCK_BYTES})


def test_what_has_come_of_a_reservation_counts_once(
    room: CacheRoom, locks: HoldLocks, tmp_path: Path
) -> None:
    with locks.held([A]):
        room.reserve({A: 6 * BLOCK_BYTES})
        put(tmp_path, A, 6)
        room.reserve({B: 4 * BLOCK_BYTES})


def test_files_of_others_and_of_failed_fills_count(
    room: CacheRoom, locks: HoldLocks, tmp_path: Path
) -> None:
    stray = put(tmp_path, A, 6)
    with locks.held([A]), pytest.raises(ResourceExhausted):
        room.reserve({B: 5 * BLOCK_BYTES})
    assert stray.exists()
    room.reserve({B: 5 * BLOCK_BYTES})
    assert not stray.exists()


def test_nothing_is_forgotten_in_vain(room: CacheRoom, locks: HoldLocks, tmp_path: Path) -> None:
    held, idle = put(tmp_path, A, 6), put(tmp_path, B, 3)
    with locks.held([A]), pytest.raises(ResourceExhausted):
        room.reserve({C: 5 * BLOCK_BYTES})
    assert held.exists()
    assert idle.exists()


def test_the_least_recently_used_goes_first(room: CacheRoom, tmp_path: Path) -> None:
    files = [put(tmp_path, digest, 3) for digest in (A, B, C)]
    room.touch([A])
    room.touch([C])
    room.reserve({"d" * 64: 6 * BLOCK_BYTES})
    assert [path.exists() for path in files] == [False, False, True]
