from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import __main__ as cli
from services.cli.mesh_directory import MeshDirectory, MeshState
from services.cli.mesh_option import mesh_in

QUICK = """
import sys
sys.argv = ["shunt", *{arguments!r}]
from services.cli import __main__ as cli
cli.mount(sys.argv[1:])
try:
    cli.app()
except SystemExit as status:
    code = status.code
heavy = {{"torch", "scipy", "transformers", "tokenizers", "boto3"}} & set(sys.modules)
print("HEAVY", sorted(heavy), "CODE", code)
"""


SIGNALLED = """
import os, sys, time
from services.cli import __main__ as cli, demo

number = int(sys.argv.pop())

def run_demo(*_):
    try:
        os.kill(os.getpid(), number)
        time.sleep(60)
    finally:
        print("taken down")

demo.run_demo = run_demo
cli.main()
"""


def _run(*arguments: str) -> str:
    code = QUICK.format(arguments=arguments)
    result = subprocess.run(
        (sys.executable, "-c", code), capture_output=True, text=True, timeout=60, check=False
    )
    return result.stdout + result.stderr


def test_the_help_names_every_command_and_imports_nothing_heavy() -> None:
    told = _run("--help")
    assert "HEAVY []" in told
    for command in ("up", "down", "status", "chat", "interrupt", "demo", "model", "plan"):
        assert f" {command} " in told


def test_commands_speak_as_the_operator_of_a_mesh_with_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    certificates = tmp_path / "certificates"
    state = MeshState("id", os.getpid(), "m", "ready", "", (), str(certificates))
    MeshDirectory(tmp_path).write(state)
    mesh_in(tmp_path)
    assert os.environ["SHUNT_TLS_DIRECTORY"] == str(certificates)
    os.environ["SHUNT_TLS_DIRECTORY"] = "mine"
    with pytest.raises(SystemExit) as stop:  # it is read first, and not there
        mesh_in(tmp_path)
    assert (stop.value.code, os.environ["SHUNT_TLS_DIRECTORY"]) == (2, "mine")


@pytest.mark.parametrize("when", ["mount", "app"])
def test_ctrl_c_while_a_command_is_imported_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "mount", lambda _: None)
    monkeypatch.setattr(cli, when, interrupted)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert stop.value.code == 130


@pytest.mark.parametrize("command", ["status", "chat"])
def test_without_a_mesh_a_command_says_so_and_fails(command: str, tmp_path: Path) -> None:
    told = _run(command, "--data-dir", str(tmp_path))
    assert "no mesh runs" in told
    assert "HEAVY [] CODE 1" in told


def test_taking_down_nothing_is_no_error(tmp_path: Path) -> None:
    told = _run("down", "--data-dir", str(tmp_path))
    assert "no mesh runs" in told
    assert "CODE 0" in told


def test_taking_down_what_has_ended_by_itself_says_that_nothing_runs(tmp_path: Path) -> None:
    child = subprocess.Popen((sys.executable, "-c", ""))
    child.wait()
    MeshDirectory(tmp_path).write(MeshState("none", child.pid, "m", "ready", "ready", ()))
    told = _run("down", "--data-dir", str(tmp_path))
    assert "no mesh runs" in told
    assert "CODE 0" in told


@pytest.mark.parametrize("speeds", ["fast", "3:0", "3:-2", "3,,2", "1e9", ""])
def test_speeds_that_are_none_are_refused_before_anything_starts(
    tmp_path: Path, speeds: str
) -> None:
    told = _run("up", "--data-dir", str(tmp_path / "mesh"), f"--node-speeds={speeds}")
    assert "shunt: --node-speeds: speeds " in told
    assert "CODE 1" in told
    assert not (tmp_path / "mesh").exists()


def test_ports_of_http_and_grpc_may_not_overlap(tmp_path: Path) -> None:
    arguments = ("--http-port", "9000", "--grpc-port", "9001", "--routers", "2")
    told = _run("up", "--data-dir", str(tmp_path), *arguments)
    assert "overlap" in told
    assert "CODE 1" in told


@pytest.mark.parametrize(
    ("given", "environment", "lacking"),
    [
        ((), {}, "--controller"),
        (("--controller", "10.0.0.5:7002"), {}, "--store"),
        ((), {"SHUNT_NODE_CONTROLLER": "10.0.0.5:7002"}, "--store"),
    ],
)
def test_a_node_that_is_not_told_what_it_needs_names_the_option(
    given: tuple[str, ...], environment: dict[str, str], lacking: str
) -> None:
    nothing = {"SHUNT_NODE_CONTROLLER": None, "SHUNT_NODE_STORE": None}
    told = CliRunner().invoke(cli.app, ["node", *given], env={**nothing, **environment})
    assert told.exit_code == 2
    assert f"Missing option '{lacking}'" in told.output


def test_a_services_own_commands_are_mounted() -> None:
    told = _run("model", "--help")
    assert " prefetch " in told
    assert "CODE 0" in told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_and_a_closed_terminal_end_what_a_command_has_started(
    tmp_path: Path, number: signal.Signals
) -> None:
    arguments = ("demo", "--data-dir", str(tmp_path), str(int(number)))
    result = subprocess.run(
        (sys.executable, "-c", SIGNALLED, *arguments),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout) == (128 + number, "taken down\n"), result.stderr
