from __future__ import annotations

from pathlib import Path

import pytest

from services.cli import layout
from services.cli.layout import NODE_SPEEDS, MeshOptions, local_mesh
from services.cli.mesh_directory import MeshDirectory


def test_routers_take_consecutive_ports(tmp_path: Path) -> None:
    options = MeshOptions(routers=2, http_port=9000, grpc_port=9100)
    specs = {spec.name: spec for spec in local_mesh(MeshDirectory(tmp_path), options, "ab")}
    assert list(specs) == ["tensorstore", "placement", "controller", "router-0", "router-1"]
    assert [specs[f"router-{i}"].http for i in (0, 1)] == [
        "http://127.0.0.1:9000",
        "http://127.0.0.1:9001",
    ]
    assert [specs[f"router-{i}"].grpc for i in (0, 1)] == ["127.0.0.1:9100", "127.0.0.1:9101"]
    assert specs["router-1"].environment["SHUNT_ROUTER_HTTP_PORT"] == "9001"


def test_everyone_is_told_where_the_others_are(tmp_path: Path) -> None:
    specs = {spec.name: spec for spec in local_mesh(MeshDirectory(tmp_path), MeshOptions(), "ab")}
    controller, router = specs["controller"].environment, specs["router-0"].environment
    assert controller["SHUNT_CONTROLLER_TENSORSTORE_ADDRESS"] == specs["tensorstore"].grpc
    assert controller["SHUNT_CONTROLLER_PLACEMENT_ADDRESS"] == specs["placement"].grpc
    assert controller["SHUNT_CONTROLLER_MODEL_DIGEST"] == "ab"
    assert router["SHUNT_ROUTER_CONTROLLER_ADDRESS"] == specs["controller"].grpc
    assert router["SHUNT_ROUTER_TENSORSTORE_ADDRESS"] == specs["tensorstore"].grpc


def test_the_local_nodes_are_of_unequal_speed(tmp_path: Path) -> None:
    specs = {spec.name: spec for spec in local_mesh(MeshDirectory(tmp_path), MeshOptions(), "ab")}
    assert NODE_SPEEDS == "3:2,3:2"
    assert specs["controller"].environment["SHUNT_CONTROLLER_NODE_SPEEDS"] == NODE_SPEEDS


def test_the_controller_is_told_what_computes_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(backend: str) -> tuple[str, str]:
        specs = local_mesh(MeshDirectory(tmp_path), MeshOptions(backend=backend), "ab")
        found = next(spec for spec in specs if spec.name == "controller").environment
        return found["SHUNT_CONTROLLER_NODE_BACKEND"], found["SHUNT_CONTROLLER_VLLM_PYTHON"]

    monkeypatch.setattr(layout, "engine_python", lambda names: Path(f"/{names[-1]}/bin/python"))
    assert told("native") == ("native", "/native/bin/python")
    assert told("vllm") == ("vllm", "/vllm/bin/python")
    assert told("native,vllm") == ("native,vllm", "/vllm/bin/python")


def test_the_controller_is_told_where_its_journal_is(tmp_path: Path) -> None:
    for journal in (None, "postgresql://me@db/mesh"):
        specs = local_mesh(MeshDirectory(tmp_path), MeshOptions(journal=journal), "ab")
        environment = next(spec for spec in specs if spec.name == "controller").environment
        assert environment.get("SHUNT_CONTROLLER_JOURNAL") == journal


def test_standbys_share_the_journal_and_everybody_knows_where_they_are(tmp_path: Path) -> None:
    options = MeshOptions(journal="postgresql://me@db/mesh", standbys=2)
    specs = {spec.name: spec for spec in local_mesh(MeshDirectory(tmp_path), options, "ab")}
    names = ["controller", "standby-1", "standby-2"]
    assert list(specs) == ["tensorstore", "placement", *names, "router-0"]
    addresses = [specs[name].grpc for name in names]
    assert len(set(addresses)) == 3
    told = specs["router-0"].environment["SHUNT_ROUTER_CONTROLLER_ADDRESS"]
    assert told.split(",") == addresses
    directories, own = set[str](), {"GRPC_PORT", "DATA_DIR", "ADVERTISE_ADDRESS"}
    shared = []
    for name, address in zip(names, addresses, strict=True):
        told_of = dict(specs[name].environment)
        of_itself = {key: told_of.pop(f"SHUNT_CONTROLLER_{key}") for key in own}
        advertised = of_itself["ADVERTISE_ADDRESS"].split(",")
        assert (advertised[0], sorted(advertised)) == (address, sorted(addresses))
        assert address.endswith(f":{of_itself['GRPC_PORT']}")
        directories.add(of_itself["DATA_DIR"])
        shared.append(told_of)
    assert len(directories) == 3
    assert shared[0] == shared[1] == shared[2]
    assert "controller" in specs["standby-2"].after, "whom it follows leads first"
    alone = {spec.name: spec for spec in local_mesh(MeshDirectory(tmp_path), MeshOptions(), "ab")}
    assert "SHUNT_CONTROLLER_ADVERTISE_ADDRESS" not in alone["controller"].environment


def test_the_controller_is_told_what_plans_are_for_where_that_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "engine_python", lambda backend: Path("python"))

    def told(options: MeshOptions) -> dict[str, str]:
        specs = local_mesh(MeshDirectory(tmp_path), options, "ab")
        environment = next(spec for spec in specs if spec.name == "controller").environment
        names = ("OBJECTIVE", "BUDGET_PER_HOUR", "NODES_MIN", "NODES_MAX", "SPARES")
        prefix = "SHUNT_CONTROLLER_"
        return {n: environment[prefix + n] for n in names if prefix + n in environment}

    assert told(MeshOptions()) == {}
    assert told(MeshOptions(backend="vllm")) == {"SPARES": "1"}
    assert told(MeshOptions(backend="native,vllm")) == {"SPARES": "2"}
    assert told(MeshOptions(backend="vllm", spares=0)) == {"SPARES": "0"}
    options = MeshOptions(
        objective="goodput-per-cost", budget_per_hour=2.5, nodes_min=0, nodes_max=6, spares=1
    )
    assert told(options) == {
        "OBJECTIVE": "goodput-per-cost",
        "BUDGET_PER_HOUR": "2.5",
        "NODES_MIN": "0",
        "NODES_MAX": "6",
        "SPARES": "1",
    }


def test_the_controller_is_told_the_market_and_which_run_of_it_this_is(tmp_path: Path) -> None:
    def controller(options: MeshOptions) -> dict[str, str]:
        specs = local_mesh(MeshDirectory(tmp_path), options, "ab")
        return dict(next(spec for spec in specs if spec.name == "controller").environment)

    assert "SHUNT_CONTROLLER_MARKET_FILE" not in controller(MeshOptions())
    options = MeshOptions(market=Path("market.yaml"))
    one, other = controller(options), controller(options)
    assert one["SHUNT_CONTROLLER_MARKET_FILE"] == str(Path("market.yaml").absolute())
    assert one["SHUNT_CONTROLLER_MARKET_RUN"] != other["SHUNT_CONTROLLER_MARKET_RUN"]


def test_every_router_asks_for_the_keys_of_one_file_where_there_is_one(tmp_path: Path) -> None:
    for keys in (None, Path("keys.json")):
        options = MeshOptions(routers=2, keys=keys)
        specs = {spec.name: spec for spec in local_mesh(MeshDirectory(tmp_path), options, "ab")}
        told = {spec.environment.get("SHUNT_ROUTER_KEYS") for spec in specs.values()}
        assert told == {None} | ({str(keys.absolute())} if keys else set())
