from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from services.cli.key_files import revoke_key
from services.common.errors import InvalidArgument
from services.common.tenants import NOBODY
from services.router.doorkeeper import Doorkeeper, InvalidApiKey
from tests.key_rings import KeyRing
from tests.log_lines import log_lines


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0  # time enough to look again
        return self.now_s


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    ring = KeyRing(tmp_path / "keys.json")
    ring.add("acme")
    return ring


def _opens(doorkeeper: Doorkeeper, key: str) -> bool:
    try:
        return bool(doorkeeper.caller([f"Bearer {key}"]).name)
    except InvalidApiKey:
        return False


def test_without_keys_everybody_is_nobody() -> None:
    doorkeeper = Doorkeeper(None)
    assert not doorkeeper.asks
    for shown in ([], ["Bearer x"], ["junk", "junk"]):
        assert doorkeeper.caller(shown) is NOBODY


@pytest.mark.parametrize(
    "garble",
    [
        lambda key: [],
        lambda key: [""],
        lambda key: [key],
        lambda key: ["Bearer"],
        lambda key: ["Bearer "],
        lambda key: [f"Basic {key}"],
        lambda key: [f"Bearer {key} {key}"],
        lambda key: [f"Bearer {key}x"],
        lambda key: [f"Bearer\t{key}"],
        lambda key: [f"Bearer {key}", f"Bearer {key}"],
        lambda key: ["Bearer ' OR 1=1--"],
        lambda key: ["Bearer \xff\xfe"],
        lambda key: [f"Bearer {'x' * 30_000}"],
    ],
)
def test_what_is_not_one_whole_key_opens_nothing_and_is_not_repeated(
    ring: KeyRing, garble: Callable[[str], list[str]]
) -> None:
    shown = garble(ring.keys["acme"])
    with pytest.raises(InvalidApiKey) as refused:
        Doorkeeper(ring.path).caller(shown)
    assert "OR 1" not in refused.value.message
    assert ring.keys["acme"] not in refused.value.message


def test_the_schemes_name_is_read_in_any_case(ring: KeyRing) -> None:
    doorkeeper = Doorkeeper(ring.path)
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert doorkeeper.caller([f"{scheme}  {ring.keys['acme']} "]).name == "acme"


def test_keys_that_are_made_and_revoked_count_without_a_restart(ring: KeyRing) -> None:
    doorkeeper, first = Doorkeeper(ring.path, Clock()), ring.keys["acme"]
    second = ring.add("acme")
    assert _opens(doorkeeper, first)
    assert _opens(doorkeeper, second)
    revoke_key(ring.path, ring.ids["acme"])
    assert not _opens(doorkeeper, second)
    assert _opens(doorkeeper, first)


def test_the_file_is_looked_at_once_a_second_at_most(ring: KeyRing) -> None:
    now_s = [0.0]
    doorkeeper, second = Doorkeeper(ring.path, lambda: now_s[0]), ring.add("acme")
    assert not _opens(doorkeeper, second)
    now_s[0] = 1.0
    assert _opens(doorkeeper, second)


def _gone(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [_gone, _empty, _half, _directory])
def test_a_file_that_cannot_be_used_keeps_the_keys_there_were_and_is_told_once(
    ring: KeyRing, spoil: Callable[[Path], None]
) -> None:
    doorkeeper, whole = Doorkeeper(ring.path, Clock()), ring.path.read_bytes()
    with log_lines() as lines:
        spoil(ring.path)
        for _ in range(3):
            assert _opens(doorkeeper, ring.keys["acme"])
            assert not _opens(doorkeeper, ring.keys["acme"][:-1] + "_")
        assert len(lines.named("keys stay as they were")) == 1
        if ring.path.is_dir():
            ring.path.rmdir()
        beside = ring.path.with_name("new")
        beside.write_bytes(whole)
        beside.replace(ring.path)
        assert _opens(doorkeeper, ring.keys["acme"])
        assert len(lines.named("keys were read again")) == 1


def test_a_router_does_not_begin_with_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("{}")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "bad"):
        with pytest.raises(InvalidArgument):
            Doorkeeper(path)


def test_what_a_tenant_may_do_is_what_its_newest_row_says(ring: KeyRing) -> None:
    doorkeeper = Doorkeeper(ring.path, Clock())
    before = doorkeeper.caller([f"Bearer {ring.keys['acme']}"])
    ring.add("acme", streams=3)
    assert doorkeeper.newest(before).limits.streams == 3
