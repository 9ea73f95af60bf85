from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.cli.ec2.options import Options
from services.cli.mesh_directory import MeshError


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"nodes": "g6e.xlarge"}, "--nodes: 'g6e.xlarge' is not TYPE:COUNT"),
        ({"nodes": "p9.xlarge:1"}, "--nodes: p9.xlarge is no type of types.yaml"),
        ({"nodes": "g6e.xlarge:15,g5.12xlarge:6"}, "--nodes: 21 nodes, and --max-instances is 20"),
        ({"mesh": "No_Mesh"}, "--mesh: 'No_Mesh' is not 1 to 32 small letters"),
        ({"mesh": "-"}, "--mesh: '-'"),
        ({"mesh": "a" * 33}, "--mesh: "),
        ({"routers": 65}, "--routers: 65 is not from 1 to 64"),
        ({"routers": 0}, "--routers: 0 is not from 1 to 64"),
        ({"max_instances": 0}, "--max-instances: 0 is not from 1"),
        ({"max_dollars_per_hour": 0.0}, "--max-dollars-per-hour: 0 is not from 0.01"),
        ({"budget_per_hour": -1.0}, "--budget-per-hour: -1 is not from 0"),
        ({"budget_per_hour": float("nan")}, "--budget-per-hour: nan"),
        ({"objective": "luck"}, "--objective: 'luck' is none of throughput"),
        ({"input_tokens": 0}, "--input-tokens must be from 1"),
        ({"rate": -1.0}, "--rate must be from 0"),
        ({"types": Path("/nowhere.yaml")}, "--types: "),
    ],
)
def test_a_bad_option_is_named_with_its_limit(given: dict[str, Any], says: str) -> None:
    with pytest.raises(MeshError) as caught:
        Options(**given).checked()
    assert says in str(caught.value)


def test_what_nobody_names_can_be_had() -> None:
    options = Options().checked()
    assert options.wish(options.table).counts is None
