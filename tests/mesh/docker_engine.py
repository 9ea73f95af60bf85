"""Brings up a Docker engine for the container tests where none runs, and ends it again.

`python -m tests.mesh.docker_engine up DIR` prints the DOCKER_HOST of an engine: of the one that
already runs, else of one started with its data under DIR. `down DIR` ends only the latter. With
SHUNT_TEST_INSTALL=1 and as root it installs Debian's engine first. Where no registry answers, the
base image is made from Debian's own packages.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests import tools

BASE_IMAGE = "python:3.11-slim-bookworm"
PACKAGES = ("docker.io", "iptables", "mmdebstrap")
BASE_PACKAGES = "ca-certificates,python3,python3-venv,python3-pip"
START_TIMEOUT_S = 60.0


class NoEngine(Exception):
    """No Docker engine runs and none can be started; says why."""


def _run(*command: str, env: Mapping[str, str] | None = None, timeout_s: float = 600.0) -> str:
    result = subprocess.run(
        command, env=env, timeout=timeout_s, text=True, capture_output=True, check=False
    )
    if result.returncode != 0:
        raise NoEngine(f"{' '.join(command[:3])}: {result.stderr.strip()[-1000:]}")
    return result.stdout


def _answers(docker_host: str) -> bool:
    if shutil.which("docker") is None:
        return False
    env = {**os.environ, **({"DOCKER_HOST": docker_host} if docker_host else {})}
    probe = subprocess.run(
        ("docker", "version", "--format", "{{.Server.Version}}"),
        env=env,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return probe.returncode == 0


def _install() -> None:
    if os.environ.get("SHUNT_TEST_INSTALL") != "1":
        raise NoEngine(
            "no Docker engine runs; SHUNT_TEST_INSTALL=1 as root installs and starts one"
        )
    if os.geteuid() != 0:
        raise NoEngine("no Docker engine runs, and only root can start one")
    if all(shutil.which(name) for name in ("dockerd", "docker", "iptables", "mmdebstrap")):
        return
    try:
        tools.install(*PACKAGES)
    except RuntimeError as error:
        raise NoEngine(str(error)) from error


def _start(directory: Path) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    socket = directory / "docker.sock"
    with (directory / "dockerd.log").open("ab") as log:
        process = subprocess.Popen(
            (
                "dockerd",
                f"--data-root={directory / 'data'}",
                f"--exec-root={directory / 'exec'}",
                f"--pidfile={directory / 'dockerd.pid'}",
                "-H",
                f"unix://{socket}",
            ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    docker_host = f"unix://{socket}"
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(docker_host):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            tail = (directory / "dockerd.log").read_text()[-1000:]
            raise NoEngine(f"dockerd does not start: {tail}")
        time.sleep(0.2)
    return docker_host


def _registry_answers() -> bool:
    try:
        with urllib.request.urlopen("https://registry-1.docker.io/v2/", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False


def _make_base_image(directory: Path, docker_host: str) -> None:
    env = {**os.environ, "DOCKER_HOST": docker_host}
    if _run("docker", "images", "-q", BASE_IMAGE, env=env).strip() or _registry_answers():
        return
    archive = directory / "base.tar"
    if not archive.exists():
        partial = directory / "base.partial.tar"
        _run(
            "mmdebstrap",
            "--variant=minbase",
            f"--include={BASE_PACKAGES}",
            "bookworm",
            str(partial),
        )
        partial.rename(archive)
    change = "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt"
    _run("docker", "import", "-c", change, str(archive), BASE_IMAGE, env=env)


def up(directory: Path) -> str:
    """The DOCKER_HOST of an engine that answers and has the base image; empty for the default.

    Raises NoEngine.
    """
    docker_host = os.environ.get("DOCKER_HOST", "")
    if not _answers(docker_host):
        docker_host = f"unix://{directory / 'docker.sock'}"
        if not _answers(docker_host):
            _install()
            docker_host = _start(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _make_base_image(directory, docker_host)
    return docker_host


def down(directory: Path) -> None:
    """Ends the engine that `up` started in this directory; images stay for the next time."""
    pid_file = directory / "dockerd.pid"
    try:
        pid = int(pid_file.read_text())
        with_name = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return
    if str(directory).encode() not in with_name:
        return
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        deadline = time.monotonic() + START_TIMEOUT_S
        while pid_file.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        os.close(handle)


if __name__ == "__main__":
    action, where = sys.argv[1], Path(sys.argv[2]).absolute()
    try:
        if action == "up":
            print(up(where))
        else:
            down(where)
    except NoEngine as problem:
        sys.exit(str(problem))
