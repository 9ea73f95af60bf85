from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.certs import commands
from services.cli.certs.authority import Wish, hosts_of, identity_from
from services.cli.certs.directory import (
    AuthorityDirectory,
    create_authority,
    read,
    read_issued_in,
    write,
)
from services.common.roles import Identity, Role


def _shunt(*words: object) -> tuple[int, str]:
    """Exit status and all that was said by `shunt certs WORDS`."""
    ran = CliRunner().invoke(commands.app, [str(word) for word in words])
    return ran.exit_code, ran.output


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """Made yesterday."""
    directory = tmp_path / "authority"
    create_authority(directory, "mesh-1", 30, datetime.now(UTC) - timedelta(days=1))
    return directory


def test_an_authority_is_made_for_a_mesh(tmp_path: Path) -> None:
    status, said = _shunt("init", tmp_path / "made", "--mesh", "mesh-1", "--days", 30)
    assert (status, "authority.key" in said) == (0, True)
    certificate = AuthorityDirectory(tmp_path / "made").authority.certificate
    assert certificate.subject.rfc4514_string() == "CN=mesh-1"
    assert certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=29)


def test_all_roles_are_issued_where_none_is_named(authority: Path) -> None:
    assert _shunt("issue", "--authority", authority)[0] == 0
    for role in Role:
        issued = read_issued_in(authority / role)
        assert issued.wish.identity == Identity(role)
        assert read(authority / role).authority == (authority / "authority.pem").read_bytes()


def test_a_nodes_certificate_names_it_and_its_hosts(authority: Path, tmp_path: Path) -> None:
    asked = ("issue", "engine", "--authority", authority, "--node", "i-1", "--host", "10.0.0.7")
    status, said = _shunt(*asked, "--host", "*.ec2.internal", "--hours", 2, "--out", tmp_path / "n")
    assert (status, said.strip()) == (0, str(tmp_path / "n"))
    issued = read_issued_in(tmp_path / "n")
    assert issued.wish.identity == Identity(Role.ENGINE, "i-1")
    assert set(issued.wish.hosts) == {"10.0.0.7", "*.ec2.internal", "127.0.0.1", "localhost"}
    assert issued.wish.life == timedelta(hours=2)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("issue", "nobody"), "ROLE"),
        (("issue", "router", "--node", "i-1"), "--node"),
        (("issue", "--node", "i-1"), "--node"),
        (("issue", "router", "engine", "--out", "x"), "--out"),
        (("issue", "router", "--host", "a b"), "--host"),
        (("issue", "router", "--hours", "0"), "--hours"),
        (("issue", "router", "--hours", "1e9"), "--hours"),
        (("issue", "router", "--hours", "nan"), "--hours"),
    ],
)
def test_what_cannot_be_issued_is_named(
    words: tuple[str, ...], named: str, authority: Path
) -> None:
    status, said = _shunt(*words, "--authority", authority)
    assert status == 2
    assert f"bad setting {named}: " in said
    assert [path.name for path in authority.iterdir() if path.is_dir()] == []


def test_an_authority_stands_alone_in_its_directory(authority: Path, tmp_path: Path) -> None:
    assert _shunt("init", authority) == (
        2,
        f"bad setting DIRECTORY: {authority} has an authority\n",
    )
    assert "bad setting --mesh" in _shunt("init", tmp_path / "b", "--mesh", "m" * 65)[1]
    status, said = _shunt("issue", "--authority", tmp_path / "nowhere")
    assert (status, "shunt certs init" in said) == (2, True)
    (tmp_path / "file").touch()
    assert _shunt("init", tmp_path / "file")[0] == 2


def _old(authority: Path) -> Path:
    """A certificate that is due."""
    wish = Wish(identity_from("router"), hosts_of(()), timedelta(hours=1))
    issued = AuthorityDirectory(authority).issue(wish, datetime.now(UTC) - timedelta(minutes=50))
    write(issued, authority / "router")
    return authority / "router"


@pytest.mark.parametrize("where", ["all", "one"])
def test_what_is_due_is_renewed(where: str, authority: Path) -> None:
    router = _old(authority)
    before = read(router)
    words = (authority,) if where == "all" else (router, "--authority", authority)
    assert _shunt("renew", *words, "--once") == (0, "renewed 1\n")
    assert read(router) != before
    assert _shunt("renew", *words, "--once") == (0, "")


def test_newer_ones_are_fetched_from_a_directory(authority: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    assert _shunt("renew", mine, "--from", authority / "router", "--once")[0] == 1
    _old(authority)
    assert _shunt("renew", mine, "--from", authority / "router", "--once") == (0, "renewed 1\n")
    assert read(mine) == read(authority / "router")


def test_what_cannot_be_renewed_is_said(authority: Path, tmp_path: Path) -> None:
    status, said = _shunt("renew", authority, "--once")
    assert (status, "shunt certs issue" in said) == (2, True)
    router = _old(authority)
    (authority / "authority.key").unlink()
    status, said = _shunt("renew", authority, "--once")
    assert (status, str(router) in said) == (1, True)
    both = ("--authority", authority, "--from", tmp_path)
    assert "bad setting --from" in _shunt("renew", router, *both, "--once")[1]


def test_it_goes_on_and_says_a_fault_once(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    router, key = _old(authority), (authority / "authority.key").read_bytes()
    (authority / "authority.key").unlink()
    looks: list[float] = []

    def look_again(pause_s: float) -> None:
        looks.append(pause_s)
        if len(looks) == 3:
            (authority / "authority.key").write_bytes(key)
        if len(looks) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(commands.time, "sleep", look_again)
    _, said = _shunt("renew", authority)
    assert said.count(str(router)) == 1
    assert said.count("renewed 1") == 1
