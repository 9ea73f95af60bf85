"""A PostgreSQL of the tests' own: a cluster in a temporary folder, run by a user without rights."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tools import INSTALLS, need

if TYPE_CHECKING:
    import psycopg

START_S = 60.0
PASSWORD = "right-horse"
_numbers = itertools.count(1)


def _programs() -> Path:
    """Where initdb and postgres lie; Debian keeps them from PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    if shutil.which("initdb") is None:
        if not INSTALLS:
            pytest.skip("no PostgreSQL here; SHUNT_TEST_INSTALL=1 as root installs it")
        need(initdb="postgresql")
        return _programs()
    return Path(str(shutil.which("initdb"))).resolve().parent


class Cluster:
    """A server on loopback that may be killed and started again; what it answered is on disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._data = directory / "data"
        self._programs = _programs()
        self._as_user: tuple[str, ...] = ()
        if os.getuid() == 0:  # which PostgreSQL refuses to run as
            nobody = pwd.getpwnam("nobody")
            os.chown(directory, nobody.pw_uid, nobody.pw_gid)
            ids = f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}"
            self._as_user = ("setpriv", *ids, "--clear-groups")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None
        password = directory / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._run(
            "initdb",
            "--pgdata",
            str(self._data),
            "--encoding=UTF8",
            "--locale=C",
            "--username=shunt",
            "--auth=scram-sha-256",
            f"--pwfile={password}",
            "--no-instructions",
            "--no-sync",  # of these first files; what is written later is synced
        )

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            (*self._as_user, str(self._programs / program), *arguments),
            cwd=self._directory,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stderr}")

    @property
    def runs(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Returns when it takes connections."""
        import psycopg  # here, for the environment of vLLM's tests has none

        log = (self._directory / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                (
                    *self._as_user,
                    str(self._programs / "postgres"),
                    *("-D", str(self._data), "-p", str(self.port), "-h", "127.0.0.1"),
                    *("-c", f"unix_socket_directories={self._directory}"),
                    *("-c", "max_connections=60", "-c", "shared_buffers=16MB"),
                    *("-c", "recovery_init_sync_method=syncfs"),  # not file by file
                ),
                cwd=self._directory,
                stdout=log,
                stderr=log,
            )
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                self.admin().close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline_s or self._process.poll() is not None:
                    raise RuntimeError((self._directory / "log").read_text()[-2000:]) from None
                time.sleep(0.05)

    def kill(self) -> None:
        """The postmaster by SIGKILL; its children notice, and are gone when this returns."""
        assert self._process is not None
        children = self._children()
        self._process.kill()
        self._process.wait()
        self._process = None
        deadline_s = time.monotonic() + START_S
        while any(Path(f"/proc/{pid}").exists() for pid in children):
            assert time.monotonic() < deadline_s, "a child of the server lives on"
            time.sleep(0.01)

    def pause(self, stopped: bool) -> None:
        """Stops every process of the server, or lets them go on."""
        assert self._process is not None
        for pid in (self._process.pid, *self._children()):
            os.kill(pid, signal.SIGSTOP if stopped else signal.SIGCONT)

    def _children(self) -> list[int]:
        assert self._process is not None
        threads = Path(f"/proc/{self._process.pid}/task").iterdir()
        return [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]

    def stop(self) -> None:
        """At once: nobody reads again what it holds."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(START_S)
            self._process = None

    def admin(self) -> psycopg.Connection[tuple[object, ...]]:
        import psycopg

        return psycopg.connect(self.uri(), autocommit=True, connect_timeout=60)

    def uri(self, schema: str = "public", password: str = PASSWORD) -> str:
        """Of one schema: a journal of its own."""
        return (
            f"postgresql://shunt:{password}@127.0.0.1:{self.port}/postgres"
            f"?options=-csearch_path%3D{schema}"
        )

    def new_journal(self) -> str:
        """The URI of a journal that holds nothing yet."""
        schema = f"j{next(_numbers)}"
        with self.admin() as connection:
            connection.execute(f"CREATE SCHEMA {schema}")
        return self.uri(schema)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One for all tests, each of which makes a journal of its own there."""
    directory = Path(tempfile.mkdtemp(prefix="shunt-postgres-"))
    made = Cluster(directory)
    made.start()
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(directory)


@pytest.fixture
def own_cluster(cluster: Cluster) -> Iterator[Cluster]:
    """The test may kill it."""
    try:
        yield cluster
    finally:
        if not cluster.runs:
            cluster.start()
