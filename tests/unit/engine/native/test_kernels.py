"""Building: once for all processes, and never a reason not to start."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.engine.native import kernels

BEST = kernels.supported_level()
pytestmark = pytest.mark.skipif(
    BEST is None or not kernels.shutil.which("g++"), reason="needs a compiler and a known CPU"
)


@pytest.fixture
def counted_compiler(tmp_path, monkeypatch):
    """A g++ in front of the real one that writes a line for each run."""
    real, folder, runs = kernels.shutil.which("g++"), tmp_path / "bin", tmp_path / "runs"
    folder.mkdir()
    script = folder / "g++"
    script.write_text(f'#!/bin/sh\necho run >> {runs}\nexec {real} -O0 "$@" -O0\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return runs


def test_processes_that_start_together_build_once(tmp_path, counted_compiler):
    code = (
        "import sys, pathlib; from services.engine.native import kernels as k;"
        "print(k.build(k.supported_level(), pathlib.Path(sys.argv[1])))"
    )
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", code, str(cache)]
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(subprocess.run, command, capture_output=True) for _ in range(3)]
        outputs = {run.result().stdout for run in runs}
    assert len(outputs) == 1
    assert Path(outputs.pop().decode().strip()).is_file()
    assert counted_compiler.read_text().count("run") == 1
    assert [path.suffix for path in sorted(cache.iterdir())] == [".so", ""]


def test_a_build_that_fails_leaves_nothing_and_falls_back(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(kernels, "FLAGS", ("--no-such-flag",))
    cache = tmp_path / "cache"
    assert kernels.load(cache) is None
    assert [path.name for path in cache.iterdir()] == ["lock"]
    assert "no-such-flag" in caplog.text


def test_without_a_compiler_the_cache_still_serves(tmp_path, counted_compiler, monkeypatch, caplog):
    built = kernels.build(BEST, tmp_path / "cache")
    monkeypatch.setenv("PATH", "")
    assert kernels.build(BEST, tmp_path / "cache") == built
    assert kernels.load(tmp_path / "elsewhere") is None
    assert "no C++ compiler" in caplog.text


def test_without_kernels_a_stage_falls_back_to_torch_and_is_exact(
    tiny_model, llama, monkeypatch, tmp_path
):
    monkeypatch.setenv("PATH", "")
    stage = tiny_model(llama).stage(kernel_cache=tmp_path / "empty", self_test=True)
    assert "torch" in stage.facts.numerics_class
    assert stage.facts.exact


def test_a_library_that_does_not_load_falls_back(tmp_path, counted_compiler, caplog):
    built = kernels.build(BEST, tmp_path)
    built.write_bytes(b"not a library")
    assert kernels.load(tmp_path) is None
    assert "do not load" in caplog.text


def test_a_cache_that_cannot_be_written_falls_back(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert kernels.load(tmp_path / "file" / "cache") is None
    assert "do not build" in caplog.text


def test_other_flags_or_sources_mean_another_library(tmp_path, counted_compiler, monkeypatch):
    first = kernels.build(BEST, tmp_path)
    monkeypatch.setattr(kernels, "FLAGS", (*kernels.FLAGS, "-g0"))
    second = kernels.build(BEST, tmp_path)
    monkeypatch.setattr(kernels, "source_digest", lambda: "0" * 12)
    assert len({first, second, kernels.build(BEST, tmp_path)}) == 3
