from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.cli.certs.authority import Wish, hosts_of, identity_from
from services.cli.certs.directory import (
    AuthorityDirectory,
    create_authority,
    read,
    read_issued_in,
    write,
)
from services.cli.certs.renewing import FromAuthority, FromDirectory, keep, renew

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)
NODE = Wish(identity_from("engine", "i-1"), hosts_of(["10.0.0.7", "node.internal"]), 6 * HOUR)


@pytest.fixture
def authority(tmp_path: Path) -> AuthorityDirectory:
    create_authority(tmp_path / "a", "mesh-1", 30, NOW)
    return AuthorityDirectory(tmp_path / "a")


@pytest.fixture
def mine(authority: AuthorityDirectory) -> Path:
    home = authority.home_of(NODE.identity)
    write(authority.issue(NODE, NOW), home)
    return home


def test_what_is_young_is_left_alone(authority: AuthorityDirectory, mine: Path) -> None:
    before = read(mine)
    assert renew(FromAuthority(authority.path), [mine], NOW + 3 * HOUR) == (0, [])
    assert read(mine) == before


def test_what_is_due_is_signed_anew_for_the_same_holder(
    authority: AuthorityDirectory, mine: Path
) -> None:
    before, now = read(mine), NOW + 5 * HOUR
    assert renew(FromAuthority(authority.path), [mine], now) == (1, [])
    after = read(mine)
    assert after.key != before.key
    issued = read_issued_in(mine)
    assert (issued.wish.identity, issued.wish.life) == (NODE.identity, NODE.life)
    assert set(issued.wish.hosts) == set(NODE.hosts)
    assert issued.ends == now + NODE.life
    assert renew(FromAuthority(authority.path), [mine], now) == (0, [])


@pytest.mark.parametrize("spoilt", ["key.pem", "authority.pem"])
def test_what_cannot_be_used_is_mended_though_it_is_young(
    spoilt: str, authority: AuthorityDirectory, mine: Path
) -> None:
    (mine / spoilt).write_bytes(b"")
    assert renew(FromAuthority(authority.path), [mine], NOW) == (1, [])
    assert read(mine).authority == authority.authority.pem


def test_an_authority_is_replaced_while_everybody_goes_on(
    authority: AuthorityDirectory, mine: Path, tmp_path: Path
) -> None:
    source, path = FromAuthority(authority.path), authority.path
    create_authority(tmp_path / "next", "mesh-1", 30, NOW)
    old, new = (where / "authority.pem" for where in (path, tmp_path / "next"))
    both = old.read_bytes() + new.read_bytes()
    old.write_bytes(both)
    assert renew(source, [mine], NOW) == (1, []), "now it trusts both"
    assert read(mine).authority == both
    assert authority.authority.has_signed(read(mine).certificate)
    (path / "authority.key").write_bytes((tmp_path / "next" / "authority.key").read_bytes())
    assert renew(source, [mine], NOW) == (1, []), "now it is of the next one"
    assert not authority.authority.has_signed(read(mine).certificate)
    old.write_bytes(new.read_bytes())
    assert renew(source, [mine], NOW) == (1, []), "now it trusts that one alone"
    assert renew(source, [mine], NOW) == (0, [])


def test_one_that_fails_keeps_no_other_from_it(authority: AuthorityDirectory, mine: Path) -> None:
    foreign = authority.path / "foreign"
    foreign.mkdir()
    (foreign / "certificate.pem").write_bytes(authority.authority.pem)
    renewed, (fault,) = renew(FromAuthority(authority.path), [foreign, mine], NOW + 5 * HOUR)
    assert renewed == 1
    assert f"{foreign}: it names no role" in fault


def test_without_the_authority_the_old_ones_stay(authority: AuthorityDirectory, mine: Path) -> None:
    before = read(mine)
    (authority.path / "authority.key").unlink()
    renewed, (fault,) = renew(FromAuthority(authority.path), [mine], NOW + 5 * HOUR)
    assert (renewed, read(mine)) == (0, before)
    assert "authority.key" in fault


def test_a_directory_is_followed(authority: AuthorityDirectory, tmp_path: Path) -> None:
    source, mine = tmp_path / "source", tmp_path / "mine"
    follow = FromDirectory(source)
    renewed, (fault,) = renew(follow, [mine], NOW)
    assert (renewed, mine.exists()) == (0, False)
    assert "source" in fault
    for now in (NOW, NOW + 2 * HOUR):
        write(authority.issue(NODE, now), source)
        assert renew(follow, [mine], now) == (1, [])
        assert read(mine) == read(source)
        assert renew(follow, [mine], now) == (0, [])


def test_an_older_or_ended_one_is_not_taken(
    authority: AuthorityDirectory, mine: Path, tmp_path: Path
) -> None:
    before, source = read(mine), tmp_path / "source"
    write(authority.issue(Wish(NODE.identity, NODE.hosts, HOUR), NOW), source)
    assert renew(FromDirectory(source), [mine], NOW) == (0, [])
    renewed, (fault,) = renew(FromDirectory(source), [mine], NOW + 2 * HOUR)
    assert (renewed, read(mine)) == (0, before)
    assert "ended" in fault


def test_a_supervisor_is_told_in_its_log(
    authority: AuthorityDirectory, mine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        keep(FromAuthority(authority.path), authority.path, NOW + 5 * HOUR)
        (authority.path / "authority.key").unlink()
        keep(FromAuthority(authority.path), authority.path, NOW + 5 * HOUR)
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
