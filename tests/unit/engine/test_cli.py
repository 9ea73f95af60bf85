from __future__ import annotations

import pytest
from typer.testing import CliRunner

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
