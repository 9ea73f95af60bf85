from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from services.cli import demo, up
from services.cli.certs.directory import create_authority
from services.cli.layout import MeshOptions, operators_of
from services.cli.mesh_directory import MeshDirectory, MeshError, MeshState, ServiceRecord
from services.cli.ports import free_ports
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import open_source
from tests.checkpoints import make_config, make_tensors, write_checkpoint
from tests.foreign_models import save_quantised

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
        (MARKET % 5, "--market: m.yaml: no offer has the relative_speed 3 of --node-speeds"),
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
            "--strategy: spotserve takes no account of --budget-per-hour",
        ),
    ],
)
def test_a_strategy_that_cannot_be_is_refused_before_anything_starts(
    tmp_path: Path, options: MeshOptions, told: str
) -> None:
    with pytest.raises(MeshError, match=told):
        up.prepare(MeshDirectory(tmp_path / "mesh"), options, Console())
    assert not (tmp_path / "mesh").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (MeshOptions(journal="mysql://db"), "--journal: is sqlite:PATH or postgresql://"),
        (MeshOptions(stages="0-1;2-5"), "--stages: stages read 0-1:tp1,2-5:tp2"),
        (
            MeshOptions(stages="0-1,2-3,4-5"),
            "--stages: 3 stages, and --node-speeds has a pipeline of 2 nodes",
        ),
    ],
)
def test_stages_that_cannot_be_are_refused_before_anything_starts(
    tmp_path: Path, options: MeshOptions, told: str
) -> None:
    with pytest.raises(MeshError, match=told):
        up.prepare(MeshDirectory(tmp_path / "mesh"), options, Console())
    assert not (tmp_path / "mesh").exists()


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ("0-0:tp1,1-2:tp2", "--stages: TP degree 2 does not divide the model's 9 attention heads"),
        ("0-0,1-3", "--stages: nine has layers 0 to 2"),
    ],
)
def test_stages_that_a_stored_model_cannot_have_are_refused_by_name(
    tmp_path: Path, stages: str, told: str
) -> None:
    config = make_config(num_attention_heads=9, num_key_value_heads=3, hidden_size=36)
    source = open_source(write_checkpoint(tmp_path / "source", config, make_tensors(config)))
    directory = MeshDirectory(tmp_path / "mesh")
    import_checkpoint(source, DirectoryBackend(directory.store), "nine")
    source.close()
    with pytest.raises(MeshError) as refused:
        up.prepare(directory, MeshOptions(model="nine", stages=stages), Console())
    assert str(refused.value) == told


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
        ({"nodes_min": 4, "nodes_max": 2}, "--nodes-max: less than --nodes-min, which is 4"),
        ({"standbys": 8}, "--standbys is from 0 to 7"),
        ({"standbys": -1}, "--standbys is from 0 to 7"),
        ({"standbys": 1}, "--standbys: a file is one controller's journal"),
        ({"standbys": 1, "journal": "sqlite:j.db"}, "--standbys: a file is one controller's"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_by_its_flag(
    tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(MeshError) as refused:
        up.prepare(MeshDirectory(tmp_path / "mesh"), MeshOptions(**options), Console())
    assert str(refused.value).startswith(told)
    assert not (tmp_path / "mesh").exists()


def test_certificates_are_for_what_is_started_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, directory = tmp_path / "certificates", MeshDirectory(tmp_path / "mesh")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(up.model, "import_if_missing", lambda *_: None)
    monkeypatch.setattr(up.model, "check_backend", lambda *_: None)
    http_port, grpc_port = free_ports(2)
    options = MeshOptions(http_port=http_port, grpc_port=grpc_port, certificates=path)
    with pytest.raises(MeshError, match=r"^--certificates: .*`shunt certs init`"):
        up.prepare(directory, options, Console())
    create_authority(path, "mesh-1", 30, datetime.now(UTC))
    up.prepare(directory, options, Console())
    assert os.environ["SHUNT_TLS_DIRECTORY"] == operators_of(options) == str(path / "operator")
    assert os.environ["SHUNT_ENGINE_TLS__DIRECTORY"] == str(path / "engine")
    assert (path / "engine" / "key.pem").is_file()


def test_a_budget_that_buys_no_node_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(MARKET % 3)
    options = MeshOptions(market=tmp_path / "m.yaml", node_speeds="3", budget_per_hour=0.5)
    with pytest.raises(MeshError, match=r"no node of --node-speeds is to be had for 0\.5 an hour"):
        up.prepare(MeshDirectory(tmp_path / "mesh"), options, Console())


def test_a_detached_supervisor_has_what_was_asked_for_too(
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
            MeshOptions(
                market=Path("m.yaml"), objective="throughput-per-cost", nodes_min=0, standbys=2
            ),
            Console(),
        )
    assert asked[0][-8:] == [
        *("--market", "m.yaml"),
        *("--standbys", "2"),
        *("--objective", "throughput-per-cost"),
        *("--nodes-min", "0"),
    ]


def test_a_model_that_the_engines_cannot_compute_is_refused_in_one_line(tmp_path: Path) -> None:
    directory = MeshDirectory(tmp_path / "mesh")
    save_quantised("awq", tmp_path / "source")
    with closing(open_source(tmp_path / "source")) as checkpoint:
        import_checkpoint(checkpoint, DirectoryBackend(directory.store), "small")
    http_port, grpc_port = free_ports(2)
    options = MeshOptions(http_port=http_port, grpc_port=grpc_port, model="small")
    with pytest.raises(MeshError) as caught:
        up.prepare(directory, options, Console(quiet=True))
    said = str(caught.value)
    assert said.startswith("model small: the native backend cannot serve this model: config.json: ")
    assert "quantization_config" in said
    assert said.endswith("; vllm can")
    assert "\n" not in said


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_file_that_holds_no_keys_is_refused_before_anything_starts(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(MeshError, match=f"^--keys: {path}: "):
        up.prepare(MeshDirectory(tmp_path / "mesh"), MeshOptions(keys=path), Console())
    assert not (tmp_path / "mesh").exists()


def test_the_curl_line_shows_a_key_where_one_is_asked_for() -> None:
    router = ServiceRecord("router-0", 1, "127.0.0.1:50051", "http://127.0.0.1:8080")
    state = MeshState("m", 1, "tiny", "ready", "ready", (router,))
    shows = [
        "Authorization: Bearer $SHUNT_API_KEY" in up.where_it_listens(state, MeshOptions(keys=keys))
        for keys in (None, Path("keys.json"))
    ]
    assert shows == [False, True]
