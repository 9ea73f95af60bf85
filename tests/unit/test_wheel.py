"""What is shipped is whole: the built wheel, installed away from the tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("services", "simulator", "protos", "deploy/ec2")
FILES = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "CHANGELOG.md")

IMPORT_ALL = """
import importlib, pkgutil, sys
import services, shuntserve
roots = (services, shuntserve)
names = [m.name for p in roots for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")]
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:  # of an environment of its own: tests/vllm imports these
        if error.name != "vllm" or not name.startswith("services.engine.vllm."):
            raise
assert all(path.startswith(sys.prefix) for path in services.__path__), services.__path__
assert all(path.startswith(sys.prefix) for path in shuntserve.__path__), shuntserve.__path__
print(len(names), *sorted({n.split(".")[1] for n in names}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the tree."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tree / name)
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    result = subprocess.run(
        (sys.executable, "-c", build, str(tree / "dist")),
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return next((tree / "dist").glob("*.whl"))


def test_every_module_of_the_wheel_imports_outside_the_tree(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "venv"
    venv.create(place, with_pip=False)
    site = next((place / "lib").glob("python3*")) / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    result = subprocess.run(
        (str(place / "bin" / "python"), "-c", IMPORT_ALL),
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    count, *services = result.stdout.split()
    assert int(count) > 100
    assert services == [
        *("cli", "common", "controller", "engine", "launcher"),
        *("model", "placement", "router", "tensorstore"),
    ]


def test_the_wheel_carries_what_is_read_at_run_time(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "services/placement/estimate/data/gpus.yaml" in names
    assert "services/engine/native/kernels/stage.cpp" in names
    deployed = (path for path in (ROOT / "deploy/ec2").rglob("*") if path.is_file())
    carried = {f"services/cli/ec2/data/{p.relative_to(ROOT / 'deploy/ec2')}" for p in deployed}
    assert carried <= {*names}
    assert "shuntserve/engine/v1/engine_pb2.pyi" in names
    assert not [name for name in names if name.startswith(("tests/", "bench/", "gen/"))]
    assert "shuntserve/__init__.py" not in names


def test_the_licence_is_the_one_the_project_names_and_goes_with_it(wheel: Path) -> None:
    text = (ROOT / "LICENSE").read_text()
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    with zipfile.ZipFile(wheel) as archive:
        carried = [
            name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")
        ]
        assert archive.read(carried[0]).decode() == text
        facts = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        assert "License-Expression: Apache-2.0\n" in archive.read(facts).decode()
