from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from services.cli import demo, up
from services.cli.layout import MeshOptions
from services.cli.mesh_directory import MeshDirectory, MeshError

WAITS = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(0)); time.sleep(600)"


FAILS = """
import os, sys
from pathlib import Path
from services.cli.mesh_directory import MeshDirectory, MeshState

fault = "controller does not start:\\nbad setting X"
state = MeshState("abc", os.getpid(), "m", "failed", fault, ())
MeshDirectory(Path(sys.argv[1])).write(state)
print("shunt:", fault)
sys.exit(1)
"""
FOREGROUND = """
import asyncio, os, signal, sys
from pathlib import Path
from rich.console import Console
from services.cli import up
from services.cli.layout import MeshOptions
from services.cli.mesh_directory import MeshDirectory

class Signalled:
    def __init__(self, *_): pass
    async def run(self, stop):
        os.kill(os.getpid(), int(sys.argv[2]))
        await stop.wait()

up.prepare, up.Supervisor = lambda *_: None, Signalled
up.model.newest = lambda *_: "ab"
up.run_in_foreground(MeshDirectory(Path(sys.argv[1])), MeshOptions(), Console())
"""


@pytest.fixture
def supervisors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Stand-ins for the supervisors that were started."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(command: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen((sys.executable, "-c", WAITS), **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_ctrl_c_while_a_mesh_comes_up_ends_it(
    tmp_path: Path,
    supervisors: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(up, "prepare", lambda *_: None)
    monkeypatch.setattr(up, "_await_ready", interrupted)
    with pytest.raises(KeyboardInterrupt):
        up.run_detached(MeshDirectory(tmp_path), MeshOptions(), Console())
    assert [process.returncode is not None for process in supervisors] == [True]


def test_a_mesh_that_does_not_come_up_says_why_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = subprocess.Popen

    def start(command: Any, **options: Any) -> subprocess.Popen[bytes]:
        return popen((sys.executable, "-c", FAILS, str(tmp_path)), **options)

    monkeypatch.setattr(up, "prepare", lambda *_: None)
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(MeshError, match=r"^controller does not start:\nbad setting X$"):
        up.run_detached(MeshDirectory(tmp_path), MeshOptions(), Console())


def test_a_demo_that_finds_a_mesh_in_its_directory_leaves_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise MeshError("a mesh already runs")

    ended: list[MeshDirectory] = []
    monkeypatch.setattr(up, "prepare", refused)
    monkeypatch.setattr(demo, "take_down", ended.append)
    with pytest.raises(MeshError, match="already runs"):
        demo.run_demo(MeshDirectory(tmp_path), Console())
    assert ended == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_a_signal_and_a_closed_terminal_end_a_mesh_in_the_foreground(
    tmp_path: Path, number: signal.Signals
) -> None:
    command = (sys.executable, "-c", FOREGROUND, str(tmp_path), str(int(number)))
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, "stopped\n"), result.stderr


MARKET = "offers: [{id: a, count: 4, price_per_hour: 1, relative_speed: %s}]"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "offers: [{id: a, count: 4}]",
            "--market: m.yaml: offers.0.price_per_hour: Field required",
        ),
        (MARKET % 5, "--market: m.yaml: no offer has the relative_speed 3 of node_speeds"),
        (None, "--market: cannot read m.yaml"),
    ],
)
def test_a_market_that_cannot_be_is_refused_before_anything_starts(
    tmp_path: Path, text: str | None, told: str
) -> None:
    path = tmp_path / "m.yaml"
    if text is not None:
        path.write_text(text)
    options = MeshOptions(market=path)
    with pytest.raises(MeshError) as refused:
        up.prepare(MeshDirectory(tmp_path / "mesh"), options, Console())
    assert str(refused.value).startswith(told)
    assert not (tmp_path / "mesh").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (MeshOptions(strategy="half"), "--strategy: known are full, migration, concurrent-init"),
        (
            MeshOptions(strategy="spotserve", budget_per_hour=3.0),
            "--strategy: spotserve takes no account of budget_per_hour",
        ),
    ],
)
def test_a_strategy_that_cannot_be_is_refused_before_anything_starts(
    tmp_path: Path, options: MeshOptions, told: str
) -> None:
    with pytest.raises(MeshError, match=told):
        up.prepare(MeshDirectory(tmp_path / "mesh"), options, Console())
    assert not (tmp_path / "mesh").exists()


def test_what_is_wrong_with_other_settings_is_not_the_market_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.yaml").write_text(MARKET % 3)
    monkeypatch.setenv("SHUNT_CONTROLLER_TICK_S", "soon")
    up.check_controller(MeshOptions(market=tmp_path / "m.yaml", node_speeds="3"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"objective": "speed"}, "--objective: Input should be 'throughput'"),
        (
            {"budget_per_hour": -1.0},
            "--budget-per-hour: Input should be greater than or equal to 0",
        ),
        ({"budget_per_hour": float("nan")}, "--budget-per-hour: "),
        ({"nodes_min": -1}, "--nodes-min: Input should be greater than or equal to 0"),
        ({"nodes_max": 20_000}, "--nodes-max: Input should be less than or equal to 10000"),
        ({"spares": -1}, "--spares: Input should be greater than or equal to 0"),
        ({"nodes_min": 4, "nodes_max": 2}, "--nodes-max: less than nodes_min, which is 4"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_by_its_flag(
    tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(MeshError) as refused:
        up.prepare(MeshDirectory(tmp_path / "mesh"), MeshOptions(**options), Console())
    assert str(refused.value).startswith(told)
    assert not (tmp_path / "mesh").exists()


def test_a_budget_that_buys_no_node_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(MARKET % 3)
    options = MeshOptions(market=tmp_path / "m.yaml", node_speeds="3", budget_per_hour=0.5)
    with pytest.raises(MeshError, match=r"no node of node_speeds is to be had for 0\.5 an hour"):
        up.prepare(MeshDirectory(tmp_path / "mesh"), options, Console())


def test_a_detached_supervisor_has_the_market_too(
    tmp_path: Path,
    supervisors: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    asked: list[Any] = []
    start = subprocess.Popen

    def noted(command: Any, **options: Any) -> subprocess.Popen[bytes]:
        asked.append(command)
        return start(command, **options)

    monkeypatch.setattr(subprocess, "Popen", noted)
    monkeypatch.setattr(up, "prepare", lambda *_: None)
    monkeypatch.setattr(up, "_await_ready", interrupted)
    with pytest.raises(KeyboardInterrupt):
        up.run_detached(
            MeshDirectory(tmp_path),
            MeshOptions(market=Path("m.yaml"), objective="throughput-per-cost", nodes_min=0),
            Console(),
        )
    assert asked[0][-6:] == [
        *("--market", "m.yaml"),
        *("--objective", "throughput-per-cost"),
        *("--nodes-min", "0"),
    ]
