from __future__ import annotations

import sys
from pathlib import Path

import pytest

from services.cli import backends
from services.cli.backends import engine_python
from services.cli.mesh_directory import MeshError


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the environment of vLLM would be, seen from one that lacks vLLM."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    return tmp_path / ".venv-vllm"


def test_native_engines_run_where_everything_does(beside: Path) -> None:
    assert engine_python(["native"]) == Path(sys.executable)


def test_vllm_has_an_environment_of_its_own(beside: Path) -> None:
    (beside / "bin").mkdir(parents=True)
    with pytest.raises(MeshError, match="`make vllm` makes it"):  # one that is not whole yet
        engine_python(["native", "vllm"])
    (beside / "installed").touch()
    assert engine_python(["vllm"]) == beside / "bin" / "python"


def test_where_vllm_is_installed_it_runs_there(
    beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: object())
    assert engine_python(["vllm"]) == Path(sys.executable)
