from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.common import certificate_files
from services.common.certificate_files import CertificateFiles
from tests.certificates import Authority


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """Files are looked at whenever they are asked for."""
    monkeypatch.setattr(certificate_files, "LOOK_INTERVAL_S", 0.0)
    return Authority(tmp_path)


@pytest.fixture
def issued(authority: Authority) -> dict[str, Path]:
    return authority.issue("router")


def _others(authority: Authority) -> dict[str, bytes]:
    """Files of another certificate."""
    found = authority.issue("controller")
    return {name: path.read_bytes() for name, path in found.items()}


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)


def test_files_that_stay_are_one_object(issued: dict[str, Path]) -> None:
    files = CertificateFiles(**issued)
    pem = files.newest()
    assert pem.certificate == issued["certificate"].read_bytes()
    assert files.newest() is pem
    os.utime(issued["key"])
    assert files.newest() is pem, "touched, and the same"


def test_both_halves_are_taken_up_together(issued: dict[str, Path], authority: Authority) -> None:
    files, others = CertificateFiles(**issued), _others(authority)
    before = files.newest()
    _replace(issued["key"], others["key"])
    assert files.newest() is before
    _replace(issued["certificate"], others["certificate"])
    after = files.newest()
    assert (after.certificate, after.key) == (others["certificate"], others["key"])


@pytest.mark.parametrize("spoilt", ["certificate", "key", "authority"])
def test_what_cannot_be_used_changes_nothing(
    spoilt: str, issued: dict[str, Path], authority: Authority
) -> None:
    files = CertificateFiles(**issued)
    before, content = files.newest(), issued[spoilt].read_bytes()
    for wrong in (b"", b"nothing of the kind", content[:-40]):
        _replace(issued[spoilt], wrong)
        assert files.newest() is before
    issued[spoilt].unlink()
    assert files.newest() is before
    _replace(issued[spoilt], content)
    others = _others(authority)
    _replace(issued["certificate"], others["certificate"])
    _replace(issued["key"], others["key"])
    assert files.newest().key == others["key"], "it looks on"


@pytest.mark.parametrize("absent", ["certificate", "key", "authority"])
def test_files_that_never_were_usable_are_refused(absent: str, issued: dict[str, Path]) -> None:
    issued[absent].unlink()
    with pytest.raises(OSError):  # noqa: PT011
        CertificateFiles(**issued)


def test_they_are_looked_at_no_more_often_than_they_need(
    issued: dict[str, Path], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate_files, "LOOK_INTERVAL_S", 3600.0)
    files, others = CertificateFiles(**issued), _others(authority)
    for name in ("certificate", "key"):
        _replace(issued[name], others[name])
    assert files.newest().key != others["key"]
