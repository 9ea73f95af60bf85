from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from stat import S_IMODE

import pytest

from services.cli.certs import directory
from services.cli.certs.authority import Wish, hosts_of, identity_from
from services.cli.certs.directory import (
    AuthorityDirectory,
    create_authority,
    holders,
    read,
    read_issued_in,
    write,
)
from services.common.errors import AlreadyExists, FailedPrecondition
from services.common.private import replace_file

NOW = datetime.now(UTC)


def _wish(role: str = "router", node: str = "") -> Wish:
    return Wish(identity_from(role, node), hosts_of(()), timedelta(hours=1))


@pytest.fixture
def authority(tmp_path: Path) -> AuthorityDirectory:
    create_authority(tmp_path / "a", "mesh-1", 30, NOW)
    return AuthorityDirectory(tmp_path / "a")


def test_keys_are_for_their_owner_alone(authority: AuthorityDirectory, tmp_path: Path) -> None:
    write(authority.issue(_wish(), NOW), tmp_path / "mine")
    for key in (authority.path / "authority.key", tmp_path / "mine" / "key.pem"):
        assert S_IMODE(key.stat().st_mode) == 0o600
    assert S_IMODE(authority.path.stat().st_mode) == 0o700
    names = {path.name for path in (tmp_path / "mine").iterdir()}
    assert names == {"certificate.pem", "key.pem", "authority.pem"}, "nothing half-written"


@pytest.mark.parametrize("left", ["authority.pem", "authority.key"])
def test_an_authority_is_never_replaced(left: str, authority: AuthorityDirectory) -> None:
    for name in {"authority.pem", "authority.key"} - {left}:
        (authority.path / name).unlink()
    with pytest.raises(AlreadyExists):
        create_authority(authority.path, "mesh-1", 30, NOW)


def test_no_half_of_an_authority_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(path: Path, content: bytes, mode: int) -> None:
        if path.name == "authority.pem":
            raise OSError(28, "No space left on device", str(path))
        replace_file(path, content, mode)

    with monkeypatch.context() as patched:
        patched.setattr(directory, "replace_file", replace)
        with pytest.raises(OSError, match="No space left"):
            create_authority(tmp_path / "b", "mesh-1", 30, NOW)
    create_authority(tmp_path / "b", "mesh-1", 30, NOW)


@pytest.mark.parametrize("absent", ["authority.pem", "authority.key"])
def test_where_there_is_no_authority_it_says_what_makes_one(
    absent: str, authority: AuthorityDirectory
) -> None:
    (authority.path / absent).unlink()
    with pytest.raises(FailedPrecondition, match=f"{absent}.*shunt certs init"):
        AuthorityDirectory(authority.path)


def test_what_is_written_can_be_used(authority: AuthorityDirectory, tmp_path: Path) -> None:
    pem = authority.issue(_wish("engine", "i-1"), NOW)
    home = authority.home_of(_wish("engine", "i-1").identity)
    write(pem, home)
    assert home == authority.path / "engine-i-1"
    assert read(home) == pem
    assert read_issued_in(home).wish == _wish("engine", "i-1")
    (home / "key.pem").unlink()
    with pytest.raises(FailedPrecondition, match="engine-i-1"):
        read(home)


def test_who_writes_at_once_leaves_one_pair(authority: AuthorityDirectory, tmp_path: Path) -> None:
    issued = [authority.issue(_wish(), NOW) for _ in range(8)]
    begun = threading.Barrier(len(issued))

    def replace(number: int) -> None:
        begun.wait()
        for _ in range(5):
            write(issued[number], tmp_path / "mine")

    threads = [threading.Thread(target=replace, args=(number,)) for number in range(len(issued))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(tmp_path / "mine") in issued


def test_directories_of_certificates_are_found(
    authority: AuthorityDirectory, tmp_path: Path
) -> None:
    assert holders(authority.path) == []
    for role in ("router", "controller"):
        write(authority.issue(_wish(role), NOW), authority.path / role)
    (authority.path / "notes").mkdir()
    assert holders(authority.path) == [authority.path / "controller", authority.path / "router"]
    assert holders(authority.path / "router") == [authority.path / "router"]
    assert holders(tmp_path / "nowhere") == []
