from __future__ import annotations

from math import inf
from pathlib import Path

import pytest
import yaml

from services.common.errors import InvalidArgument, NotFound
from services.common.nodes import NodeShape
from services.controller.providers.ec2.table import read_table

ROOT = Path(__file__).parents[5]
ROW = {"instance_type": "g6e.xlarge", "memory_bytes": 1000, "count": 2, "price_per_hour": 1.5}
RESERVED = {
    "id": "cr-0123456789abcdef0",
    "instance_type": "g6e.xlarge",
    "zone_id": "use1-az1",
    "count": 1,
    "price_per_hour": 2.0,
}


def written(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "types.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_table_says_what_may_be_bought(tmp_path: Path) -> None:
    rows = [ROW | {"relative_speed": 2.0, "device_type": "l40s", "devices": 4, "backend": "vllm"}]
    table = read_table(written(tmp_path, {"types": rows, "reservations": [RESERVED]}))
    kind = table.types["g6e.xlarge"]
    assert (kind.shape, kind.count) == (NodeShape(1000, 2.0, "l40s", 4, "vllm"), 2)
    assert (kind.spot, kind.on_demand, kind.interruptions_per_hour) == (True, True, 0.0)
    assert table.reservations[0].zone_id == "use1-az1"


def test_what_one_costs_at_most_is_its_dearest_market(tmp_path: Path) -> None:
    cheap = ROW | {"instance_type": "g5.xlarge", "price_per_hour": 0.5}
    table = read_table(written(tmp_path, {"types": [ROW, cheap], "reservations": [RESERVED]}))
    assert table.dollars_per_hour("g6e.xlarge") == 2.0
    assert table.dollars_per_hour("g5.xlarge") == 0.5
    assert table.dollars_per_hour("p5.48xlarge") == inf
    assert table.dearest_per_hour == 2.0


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({"types": []}, "types"),
        ({"types": [ROW | {"price_per_hour": 0}]}, "types.0.price_per_hour"),
        ({"types": [ROW | {"instance_type": "g6e/xlarge"}]}, "types.0.instance_type"),
        ({"types": [ROW | {"count": -1}]}, "types.0.count"),
        ({"types": [ROW | {"devices": 0}]}, "types.0.devices"),
        ({"types": [ROW | {"devices": 65}]}, "types.0.devices"),
        ({"types": [ROW | {"colour": "red"}]}, "types.0.colour"),
        ({"types": [ROW, ROW]}, "types.1.instance_type"),
        ({"types": [ROW | {"spot": False, "on_demand": False}]}, "types.0.spot"),
        ({"types": [ROW], "reservations": [RESERVED | {"id": "r-1"}]}, "reservations.0.id"),
        ({"types": [ROW], "reservations": [RESERVED, RESERVED]}, "reservations.1.id"),
        (
            {"types": [ROW], "reservations": [RESERVED | {"instance_type": "g5.xlarge"}]},
            "reservations.0.instance_type",
        ),
    ],
)
def test_a_table_that_cannot_be_names_the_place(
    tmp_path: Path, document: object, place: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_table(written(tmp_path, document))
    assert caught.value.field == place
    assert caught.value.message.startswith(f"types.yaml: {place}: ")


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_table(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", ["types.yaml", "paper-types.yaml"])
def test_the_tables_that_come_with_it_agree_with_placements_catalogue(name: str) -> None:
    table = read_table(ROOT / "deploy/ec2" / name)
    data = ROOT / "services/placement/estimate/data"
    known = {
        row["name"]: row
        for row in yaml.safe_load((data / "instances.yaml").read_text())["instances"]
    }
    gpus = {row["name"]: row for row in yaml.safe_load((data / "gpus.yaml").read_text())["gpus"]}
    for kind in table.types.values():
        row = known[kind.name]
        assert kind.price_per_hour == row["price_per_hour"], kind.name
        assert kind.shape.device_type == row["gpu"], kind.name
        assert kind.shape.device_count == row["gpu_count"], kind.name
        assert kind.shape.backend == "vllm", "native stages have one GPU each"
        whole = gpus[row["gpu"]]["memory_gb"] * 10**9 * row["gpu_count"]
        assert 0.5 * whole < kind.shape.memory_bytes < whole, kind.name
