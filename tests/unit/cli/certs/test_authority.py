from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from services.cli.certs.authority import Authority, Wish, hosts_of, identity_from, read_issued
from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.roles import Identity, Role, host_of

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)
ROUTER = Wish(Identity(Role.ROUTER), hosts_of(["10.0.0.7", "*.ec2.internal", "::1"]), 12 * HOUR)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.drawn("mesh-1", 30, NOW)


def _openssl(directory: Path, authority: Authority, certificate: bytes, *options: str) -> str:
    """What openssl says of a certificate; empty when it is good."""
    for name, pem in (("ca.pem", authority.pem), ("leaf.pem", certificate)):
        (directory / name).write_bytes(pem)
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(directory / "ca.pem")]
    ran = subprocess.run(
        [*command, *options, str(directory / "leaf.pem")], capture_output=True, text=True
    )
    return "" if ran.returncode == 0 else ran.stdout + ran.stderr


@pytest.mark.parametrize("role", Role)
def test_a_certificate_says_its_role(role: Role, authority: Authority) -> None:
    wish = Wish(identity_from(role), hosts_of(()), HOUR)
    assert read_issued(authority.issue(wish, NOW)[0]).wish.identity == Identity(role)


def test_what_it_says_is_what_was_wished(authority: Authority) -> None:
    wish = Wish(identity_from("engine", "i-0a1b"), ("10.0.0.1", "a.b", "localhost"), 3 * HOUR)
    issued = read_issued(authority.issue(wish, NOW)[0])
    assert issued.wish == wish
    assert issued.ends == NOW + 3 * HOUR


@pytest.mark.parametrize("role", Role)
def test_it_names_its_role_to_who_calls_and_no_other(
    role: Role, authority: Authority, tmp_path: Path
) -> None:
    leaf, _ = authority.issue(Wish(Identity(role), hosts_of(()), HOUR), NOW)
    assert _openssl(tmp_path, authority, leaf, "-verify_hostname", host_of(role)) == ""
    another = Role.ENGINE if role is Role.CONTROLLER else Role.CONTROLLER
    said = _openssl(tmp_path, authority, leaf, "-verify_hostname", host_of(another))
    assert "hostname mismatch" in said.lower()


def test_one_that_names_no_role_to_who_calls_is_due(authority: Authority) -> None:
    issued = read_issued(authority.issue(ROUTER, NOW)[0])
    assert issued.names_its_role
    assert replace(issued, names_its_role=False).is_due(NOW)


def test_openssl_takes_it_for_both_ends_and_its_hosts(authority: Authority, tmp_path: Path) -> None:
    leaf, _ = authority.issue(ROUTER, NOW)
    for purpose in ("sslserver", "sslclient"):
        for host in ("-verify_hostname=ip-10-0-0-1.ec2.internal", "-verify_ip=10.0.0.7"):
            name, _, value = host.partition("=")
            asked = ("-purpose", purpose, name, value)
            assert _openssl(tmp_path, authority, leaf, *asked) == ""
    stranger = ("-verify_hostname", "controller.mesh.internal")
    assert "hostname mismatch" in _openssl(tmp_path, authority, leaf, *stranger).lower()


def test_openssl_refuses_it_when_it_has_ended_or_is_anothers(
    authority: Authority, tmp_path: Path
) -> None:
    before = Authority.drawn("mesh-1", 30, NOW - 20 * HOUR)
    ended, _ = before.issue(ROUTER, NOW - 13 * HOUR)
    assert "expired" in _openssl(tmp_path, before, ended)
    foreign, _ = before.issue(ROUTER, NOW)
    assert _openssl(tmp_path, before, foreign) == ""
    assert _openssl(tmp_path, authority, foreign)


def test_a_certificate_signs_no_other(authority: Authority, tmp_path: Path) -> None:
    leaf, key = authority.issue(ROUTER, NOW)
    extensions = x509.load_pem_x509_certificate(leaf).extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    impostor = Authority.read(leaf, key)
    chained = impostor.issue(Wish(Identity(Role.OPERATOR), hosts_of(()), HOUR), NOW)[0]
    (tmp_path / "between.pem").write_bytes(leaf)
    between = ("-untrusted", str(tmp_path / "between.pem"))
    assert _openssl(tmp_path, authority, chained, *between)


def test_it_is_due_after_two_thirds_of_its_life(authority: Authority) -> None:
    issued = read_issued(authority.issue(ROUTER, NOW)[0])
    assert not issued.is_due(NOW)
    assert not issued.is_due(NOW + 7.9 * HOUR)
    assert issued.is_due(NOW + 8.1 * HOUR)
    assert issued.is_due(NOW + 20 * HOUR)


def test_it_does_not_outlive_its_authority(authority: Authority) -> None:
    leaf, _ = authority.issue(ROUTER, NOW + timedelta(days=30) - HOUR)
    assert read_issued(leaf).ends == NOW + timedelta(days=30)
    with pytest.raises(FailedPrecondition, match="ended"):
        authority.issue(ROUTER, NOW + timedelta(days=30))


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        (Wish(ROUTER.identity, (), HOUR), "host"),
        (Wish(ROUTER.identity, ("a b",), HOUR), "host"),
        (Wish(ROUTER.identity, ("a.*.b",), HOUR), "host"),
        (Wish(ROUTER.identity, ("10.0.0.0/8",), HOUR), "host"),
        (Wish(ROUTER.identity, ("é.example",), HOUR), "host"),
        (Wish(ROUTER.identity, ("a." * 127 + "b",), HOUR), "host"),
        (Wish(ROUTER.identity, tuple(f"h{n}" for n in range(65)), HOUR), "host"),
        (Wish(ROUTER.identity, (host_of(Role.CONTROLLER),), HOUR), "host"),
        (Wish(ROUTER.identity, ("*.Role.shuntserve.internal",), HOUR), "host"),
        (Wish(ROUTER.identity, ("a",), timedelta(0)), "life"),
        (Wish(ROUTER.identity, ("a",), timedelta(days=91)), "life"),
        (Wish(Identity(Role.ROUTER, "n1"), ("a",), HOUR), "node"),
        (Wish(Identity(Role.ENGINE, "n/1"), ("a",), HOUR), "node"),
        (Wish(Identity(Role.ENGINE, "n" * 129), ("a",), HOUR), "node"),
    ],
)
def test_what_it_cannot_say_is_refused(wish: Wish, field: str, authority: Authority) -> None:
    with pytest.raises(InvalidArgument) as refused:
        authority.issue(wish, NOW)
    assert refused.value.field == field


@pytest.mark.parametrize("role", ["nobody", "", "Router", "engine/n1"])
def test_a_role_that_is_none_is_refused(role: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        identity_from(role)
    assert refused.value.field == "role"


@pytest.mark.parametrize(
    ("mesh", "days", "field"),
    [("", 1, "mesh"), ("m" * 65, 1, "mesh"), ("m", 0, "days"), ("m", 3651, "days")],
)
def test_an_authority_has_a_name_and_an_end(mesh: str, days: int, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        Authority.drawn(mesh, days, NOW)
    assert refused.value.field == field


def test_a_key_belongs_to_one_of_its_certificates(authority: Authority) -> None:
    other = Authority.drawn("mesh-2", 30, NOW)
    _, key = authority.issue(ROUTER, NOW)
    with pytest.raises(FailedPrecondition, match="none of its certificates"):
        Authority.read(authority.pem, key)
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        Authority.read(b"nothing", key)
    leaf, _ = other.issue(ROUTER, NOW)
    assert other.has_signed(leaf)
    assert not authority.has_signed(leaf)


def test_what_names_no_role_is_no_certificate_of_a_mesh(authority: Authority) -> None:
    for pem in (b"", b"nothing", authority.pem):
        with pytest.raises(InvalidArgument) as refused:
            read_issued(pem)
        assert refused.value.field == "certificate"
