from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import settings

from tests.ec2.fixtures import cloud, listening_cloud, types_file
from tests.postgres import cluster, own_cluster

__all__ = ["cloud", "cluster", "listening_cloud", "own_cluster", "types_file"]

# How long an example takes says how busy the machine is, not whether the code is right. CI judges
# a change by the same examples each time; by hand other ones are drawn at every run.
settings.register_profile("untimed", deadline=None)
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable" if os.environ.get("CI") else "untimed")

pytest_plugins = ["tests.second_try"]

collect_ignore = [] if find_spec("vllm") is not None else ["vllm"]
"""Those run in the environment of engines on vLLM, and there alone: `make test` runs both."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        from tests import lanes

        items.sort(key=lambda item: lanes.rank(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    from tests import lanes

    return None if find_spec("vllm") else lanes.workers()  # vLLM computes all the time


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests import lanes

    return lanes.Lanes(config, log)
