"""Which tests wait for each other where pytest has several workers (`pytest -n`): lanes.

Tests of a lane run one after another in one worker. Those of `tests/mesh` are all of one: each has
a mesh of some ten processes, and two such would wait for each other. Beside it, others use what a
mesh that waits leaves of the cores.
"""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

MESH = "tests/mesh"
ORDER = (MESH, "tests/simulation", "tests/clients", "tests/contract", "tests/unit")
"""The longest first, so that no worker is left with a long one when the others have done."""
APART = (
    "tests/simulation/test_simulation.py",
    "tests/vllm/test_families.py",
    "tests/vllm/test_quantised.py",
)
"""Files whose every test is long enough for a lane of its own."""


def lane(nodeid: str) -> str:
    """What a test shares with those that may not run beside it: a folder, its file, or itself."""
    file = nodeid.partition("::")[0]
    if file.startswith(f"{MESH}/"):
        return MESH
    return nodeid if file in APART else file


def rank(nodeid: str) -> int:
    """Where a test's folder stands in the order; those of no such folder come last."""
    found = (index for index, folder in enumerate(ORDER) if nodeid.startswith(f"{folder}/"))
    return next(found, len(ORDER))


class Lanes(LoadScopeScheduling):
    """Gives each worker that has little left the next lane."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # they are in order

    def _split_scope(self, nodeid: str) -> str:
        return lane(nodeid)
