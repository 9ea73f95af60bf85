from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict

from services.common import settings
from tests.certificates import Authority

ROOT = Path(__file__).parents[3]


class _Settings(settings.ServiceSettings):
    model_config = SettingsConfigDict(
        env_prefix="SHUNT_TEST_", frozen=True, extra="ignore", env_nested_delimiter="__"
    )


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHUNT_TEST_GRPC_PORT", "4711")
    assert settings.read(_Settings).grpc_port == 4711


def test_a_bad_setting_names_its_field_and_exits_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHUNT_TEST_GRPC_PORT", "70000")
    with pytest.raises(SystemExit) as stop:
        settings.read(_Settings)
    assert stop.value.code == 2
    assert "SHUNT_TEST_GRPC_PORT" in capsys.readouterr().err


def test_settings_cannot_be_changed_after_they_were_read() -> None:
    with pytest.raises(ValidationError):
        settings.read(_Settings).grpc_port = 1  # type: ignore[misc]


@pytest.mark.parametrize(("told", "code"), [("--help", 0), ("--grpc-port=1", 2), ("run", 2)])
def test_who_is_told_by_its_environment_alone_says_so(
    told: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["prog"])
    settings.take_no_arguments(_Settings)
    monkeypatch.setattr("sys.argv", ["prog", told])
    with pytest.raises(SystemExit) as stop:
        settings.take_no_arguments(_Settings)
    assert stop.value.code == code
    said = capsys.readouterr()
    assert ("SHUNT_TEST_" in said.out) if code == 0 else (told in said.err)


@pytest.mark.parametrize(
    "service", ["controller", "engine", "launcher", "placement", "router", "tensorstore"]
)
def test_no_service_starts_when_asked_for_help(service: str) -> None:
    text = (ROOT / "services" / service / "__main__.py").read_text()
    begin = text[text.index('if __name__ == "__main__":') :].splitlines()
    assert "take_no_arguments(" in begin[1]
    assert begin[2].strip() == "main()"


FILES = ("certificate", "key", "authority")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """All three files of TLS, named in the environment."""
    found = Authority(tmp_path).issue("controller")
    for name, path in found.items():
        monkeypatch.setenv(f"SHUNT_TLS_{name.upper()}", str(path))
    return found


def test_tls_is_on_with_three_files_and_off_with_none(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.read(_Settings).tls.enabled
    for name in FILES:
        monkeypatch.setenv(f"SHUNT_TLS_{name.upper()}", "")
    assert not settings.read(_Settings).tls.enabled


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("kind", [_Settings, settings.TlsSettings])
@pytest.mark.parametrize("absent", FILES)
def test_half_of_tls_is_no_tls_and_names_what_is_missing(
    kind: type[Any],
    absent: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"SHUNT_TLS_{absent.upper()}"
    for value, reason in (("", "TLS needs"), ("/nowhere.pem", "does not point to a file")):
        monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as stop:
            settings.read(kind)
        assert stop.value.code == 2
        told = capsys.readouterr().err
        assert f"bad setting {name}: " in told
        assert reason in told


@pytest.mark.parametrize("spoilt", FILES)
def test_a_file_that_is_no_certificate_is_named(
    spoilt: str, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    files[spoilt].write_text("nothing of the kind")
    with pytest.raises(SystemExit) as stop:
        settings.read(_Settings)
    assert stop.value.code == 2
    assert f"SHUNT_TLS_{spoilt.upper()}" in capsys.readouterr().err


def test_a_key_of_another_certificate_is_refused(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files["key"].write_bytes(Authority(tmp_path).issue("router")["key"].read_bytes())
    with pytest.raises(SystemExit):
        settings.read(_Settings)
    told = capsys.readouterr().err
    assert "SHUNT_TLS_CERTIFICATE and SHUNT_TLS_KEY: " in told
    assert "mismatch" in told.lower()


def test_a_service_may_have_a_certificate_of_its_own(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.pem"
    own.write_bytes(files["certificate"].read_bytes())
    monkeypatch.setenv("SHUNT_TEST_TLS__CERTIFICATE", str(own))
    tls = settings.read(_Settings).tls
    assert (tls.certificate, tls.authority) == (own, files["authority"])
    assert os.environ["SHUNT_TLS_CERTIFICATE"] == str(own)


def _directory(path: Path, authority: Authority, identity: str) -> Path:
    path.mkdir()
    for name, file in authority.issue(identity).items():
        (path / settings.TLS_FILES[name]).write_bytes(file.read_bytes())
    return path


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of certificates, named in the environment."""
    (tmp_path / "made").mkdir()
    found = _directory(tmp_path / "all", Authority(tmp_path / "made"), "operator")
    monkeypatch.setenv("SHUNT_TLS_DIRECTORY", str(found))
    for name in FILES:  # set anew for the client of the store: not for the tests that follow
        monkeypatch.setenv(f"SHUNT_TLS_{name.upper()}", "")
    return found


def test_a_directory_stands_for_its_three_files(directory: Path) -> None:
    tls = settings.read(_Settings).tls
    assert tls.enabled
    assert tls.key == directory / "key.pem"
    assert os.environ["SHUNT_TLS_AUTHORITY"] == str(directory / "authority.pem")


def test_files_that_are_named_come_before_a_directorys(
    directory: Path, files: dict[str, Path]
) -> None:
    tls = settings.read(_Settings).tls
    assert {name: getattr(tls, name) for name in FILES} == files


@pytest.mark.usefixtures("files")
def test_a_services_own_directory_comes_before_what_all_have(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = _directory(tmp_path / "own", Authority(tmp_path / "made"), "router")
    monkeypatch.setenv("SHUNT_TEST_TLS__DIRECTORY", str(own))
    tls = settings.read(_Settings).tls
    assert {getattr(tls, name).parent for name in FILES} == {own}


@pytest.mark.parametrize("absent", FILES)
def test_a_directory_that_lacks_a_file_is_named_with_it(
    absent: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / f"{absent}.pem").unlink()
    with pytest.raises(SystemExit) as stop:
        settings.read(_Settings)
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert f"SHUNT_TLS_DIRECTORY: {directory} has no {absent}.pem" in told


def test_a_directory_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHUNT_TLS_DIRECTORY", "/nowhere")
    with pytest.raises(SystemExit):
        settings.read(settings.TlsSettings)
    assert "SHUNT_TLS_DIRECTORY" in capsys.readouterr().err
