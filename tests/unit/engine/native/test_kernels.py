"""Building: once for all processes, and never a reason not to start."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.engine.native import kernels

LEVELS = kernels.supported_levels()
BEST = LEVELS[0] if LEVELS else None
pytestmark = pytest.mark.skipif(
    BEST is None or not kernels.shutil.which("g++"), reason="needs a compiler and a known CPU"
)


def put_first(folder, script, monkeypatch):
    """A g++ of our own in front of the real one."""
    folder.mkdir()
    (folder / "g++").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.fixture
def hasty_compiler(tmp_path, monkeypatch):
    """The real one, told not to optimise; it writes a line for each run."""
    real, runs = kernels.shutil.which("g++"), tmp_path / "runs"
    put_first(tmp_path / "bin", f'echo run >> {runs}\nexec {real} "$@" -O0', monkeypatch)
    return runs


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """What the real one makes of the sources, once for all tests of what becomes of a library."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(kernels, "FLAGS", (*kernels.FLAGS, "-O0"))
        built = kernels.build(BEST, tmp_path_factory.mktemp("library"))
    assert built is not None
    return built


@pytest.fixture
def compiler(tmp_path, library, monkeypatch):
    """One that has compiled already: it answers with the library."""
    put_first(tmp_path / "bin", f'for target; do :; done\nexec cp {library} "$target"', monkeypatch)


def test_processes_that_start_together_build_once(tmp_path, hasty_compiler):
    code = (
        "import sys, pathlib; from services.engine.native import kernels as k;"
        "print(k.build(k.supported_levels()[0], pathlib.Path(sys.argv[1])))"
    )
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", code, str(cache)]
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(subprocess.run, command, capture_output=True) for _ in range(3)]
        outputs = {run.result().stdout for run in runs}
    assert len(outputs) == 1
    assert Path(outputs.pop().decode().strip()).is_file()
    assert hasty_compiler.read_text().count("run") == 1
    assert [path.suffix for path in sorted(cache.iterdir())] == [".so", ""]


def test_a_build_that_fails_leaves_nothing_and_falls_back(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(kernels, "FLAGS", ("--no-such-flag",))
    cache = tmp_path / "cache"
    assert kernels.load(cache) is None
    assert [path.name for path in cache.iterdir()] == ["lock"]
    assert "as exact but slower" in caplog.text
    assert "no-such-flag" in caplog.text


def test_a_compiler_that_complains_in_another_encoding_falls_back(tmp_path, monkeypatch, caplog):
    script = tmp_path / "g++"
    script.write_bytes(b"#!/bin/sh\nprintf 'err\\377r' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert kernels.load(tmp_path / "cache") is None
    assert "does not build" in caplog.text


def test_without_a_compiler_the_cache_still_serves(tmp_path, compiler, monkeypatch, caplog):
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


def test_a_library_that_does_not_load_falls_back(tmp_path, compiler, caplog):
    kernels.build(BEST, tmp_path).write_bytes(b"not a library")
    assert kernels.load(tmp_path, BEST) is None
    assert "do not load" in caplog.text


@pytest.mark.skipif(len(LEVELS) < 2, reason="needs two levels")
def test_a_compiler_too_old_for_the_best_level_builds_the_next(
    tmp_path, hasty_compiler, monkeypatch
):
    too_new = kernels.Level("new", BEST.cpu_flags, ("-mno-such-instructions",), "new")
    monkeypatch.setattr(kernels, "supported_levels", lambda: (too_new, LEVELS[-1]))
    found = kernels.load(tmp_path)
    assert found is not None
    assert found.level is LEVELS[-1]


@pytest.mark.skipif(BEST is None or BEST.name != "amx", reason="needs a CPU with tiles")
def test_where_tiles_are_refused_the_next_level_serves(monkeypatch):
    monkeypatch.setattr(kernels, "_may_use_tiles", lambda: False)
    assert kernels.supported_levels()[0].name == "avx512bf16"


def test_a_cache_that_cannot_be_written_falls_back(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert kernels.load(tmp_path / "file" / "cache") is None
    assert "does not build" in caplog.text


@pytest.mark.parametrize("part", ["library", "folder"])
def test_what_others_may_write_to_is_not_loaded(tmp_path, compiler, part, monkeypatch):
    cache = tmp_path / "cache"
    built = kernels.build(BEST, cache)
    (built if part == "library" else cache).chmod(0o777)
    monkeypatch.setenv("PATH", "")
    assert kernels.build(BEST, cache) is None


def test_other_flags_or_sources_mean_another_library(tmp_path, compiler, monkeypatch):
    first = kernels.build(BEST, tmp_path)
    monkeypatch.setattr(kernels, "FLAGS", (*kernels.FLAGS, "-g0"))
    second = kernels.build(BEST, tmp_path)
    monkeypatch.setattr(kernels, "source_digest", lambda: "0" * 12)
    assert len({first, second, kernels.build(BEST, tmp_path)}) == 3
