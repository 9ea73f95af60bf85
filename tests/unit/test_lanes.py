from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests import lanes

ROOT = Path(__file__).parents[2]


def test_all_tests_with_a_mesh_are_in_one_lane() -> None:
    found = {lanes.lane(f"tests/mesh/{name}.py::test_it[a::b]") for name in ("test_a", "test_b")}
    assert found == {"tests/mesh"}


def test_tests_of_a_file_share_its_fixtures_and_a_lane() -> None:
    file = "tests/contract/router/test_access.py"
    assert {lanes.lane(f"{file}::{name}") for name in ("test_a", "test_b[1]")} == {file}


def test_a_long_test_has_a_lane_of_its_own() -> None:
    for file in lanes.APART:
        assert (ROOT / file).is_file()
        found = {lanes.lane(f"{file}::{name}") for name in ("test_a", "test_b[1]", "test_b[2]")}
        assert len(found) == 3


def test_the_longest_go_first(request: pytest.FixtureRequest) -> None:
    assert all((ROOT / folder).is_dir() for folder in lanes.ORDER)
    ranks = [lanes.rank(f"{folder}/test_it.py::test_it") for folder in (*lanes.ORDER, "elsewhere")]
    assert all(earlier < later for earlier, later in pairwise(ranks))
    if hasattr(request.config, "workerinput"):
        mine = [lanes.rank(item.nodeid) for item in request.session.items]
        assert mine == sorted(mine)
