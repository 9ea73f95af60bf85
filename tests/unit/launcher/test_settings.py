from __future__ import annotations

import pytest

from services.common import mesh_token
from services.common.settings import read
from services.launcher.settings import LauncherSettings


def test_the_network_is_the_projects_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHUNT_LAUNCHER_PROJECT", "p")
    settings = read(LauncherSettings)
    assert (settings.only_network, settings.pattern, settings.image) == (
        *("p_mesh", "engine"),
        "shunt-engine",
    )
    monkeypatch.setenv("SHUNT_LAUNCHER_NETWORK", "another")
    assert read(LauncherSettings).only_network == "another"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROJECT", ""),
        ("PROJECT", "A B"),
        ("PROJECT", "p|q"),
        ("PATTERN", "../x"),
        ("SOCKET", "tcp://0.0.0.0:2375"),
        ("MAX_CONTAINERS", "0"),
        ("IMAGE", ""),
    ],
)
def test_a_bad_setting_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv("SHUNT_LAUNCHER_PROJECT", "p")
    monkeypatch.setenv(f"SHUNT_LAUNCHER_{name}", value)
    with pytest.raises(SystemExit) as stopped:
        read(LauncherSettings)
    assert stopped.value.code == 2
    assert f"SHUNT_LAUNCHER_{name}" in capsys.readouterr().err


def test_beyond_loopback_it_asks_for_the_meshs_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHUNT_LAUNCHER_PROJECT", "p")
    monkeypatch.setenv("SHUNT_LAUNCHER_HOST", "0.0.0.0")
    monkeypatch.delenv(mesh_token.VARIABLE, raising=False)
    monkeypatch.delenv(mesh_token.FILE_VARIABLE, raising=False)
    with pytest.raises(SystemExit):
        read(LauncherSettings)
    assert mesh_token.VARIABLE in capsys.readouterr().err
