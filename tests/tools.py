"""Programs of other makers that tests measure ours against, installed where they are missing."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

INSTALLS = os.environ.get("SHUNT_TEST_INSTALL") == "1"
"""Set by CI: what is missing is installed, and what cannot be is a failure."""


def _run(*command: str) -> None:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:3])}: {(done.stderr or done.stdout)[-1000:]}")


def need(**packages: str) -> None:
    """Each program, and the Debian package that has it. Without SHUNT_TEST_INSTALL=1 a missing
    program skips the test."""
    missing = {name: package for name, package in packages.items() if shutil.which(name) is None}
    if not missing:
        return
    if not INSTALLS:
        pytest.skip(f"no {', '.join(missing)} here; SHUNT_TEST_INSTALL=1 as root installs them")
    install(*sorted(set(missing.values())))


def install(*packages: str) -> None:
    """Debian packages, by one test at a time: apt refuses to run beside itself."""
    with (Path(tempfile.gettempdir()) / "shunt-tests-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run("apt-get", "update", "-qq")
        _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages)


def npm_package(name: str, version: str, directory: Path) -> Path:
    """A folder whose node_modules has the package; kept for the next time."""
    need(node="nodejs", npm="npm")
    directory.mkdir(parents=True, exist_ok=True)
    done = directory / f"{name}-{version}.done"
    if not done.exists():
        quiet = ("--no-fund", "--no-audit", "--no-save", "--ignore-scripts", "--silent")
        _run("npm", "install", *quiet, f"--prefix={directory}", f"{name}@{version}")
        done.touch()
    return directory
