from __future__ import annotations

import pytest
from typer.testing import CliRunner

from services.common import mesh_token
from services.engine import __main__ as main_module
from services.engine.cli import app
from services.engine.settings import EngineSettings


def test_run_hands_its_options_to_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NODE_ID", "CONTROLLER", "STORE", "HOST", "GRPC_PORT"):
        monkeypatch.setenv(f"SHUNT_ENGINE_{name}", "")
    seen: list[EngineSettings] = []
    monkeypatch.setattr(main_module, "main", lambda: seen.append(EngineSettings()))
    options = ["run", "--node-id", "n1", "--controller", "c:1", "--store", "/s", "--grpc-port", "7"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    (settings,) = seen
    assert (settings.node_id, settings.controller) == ("n1", "c:1")
    assert (settings.store, settings.grpc_port) == ("/s", 7)


def test_run_needs_a_node() -> None:
    assert CliRunner().invoke(app, ["run"]).exit_code == 2


def test_token_prints_a_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mesh_token.VARIABLE, "a-token-of-24-characters")
    result = CliRunner().invoke(app, ["token", "--node-id", "n1"])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == mesh_token.of_node("a-token-of-24-characters", "n1")


@pytest.mark.parametrize(
    ("token", "node_id", "named"),
    [
        ("", "n1", mesh_token.VARIABLE),
        ("short", "n1", mesh_token.VARIABLE),
        ("a-token-of-24-characters", "", "--node-id"),
        (mesh_token.of_node("a-token-of-24-characters", "n1"), "n2", "--node-id"),
    ],
)
def test_token_names_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, token: str, node_id: str, named: str
) -> None:
    monkeypatch.setenv(mesh_token.VARIABLE, token)
    result = CliRunner().invoke(app, ["token", "--node-id", node_id])
    assert result.exit_code == 2
    assert f"bad setting {named}: " in result.stderr
