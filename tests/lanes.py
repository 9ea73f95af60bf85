"""Which tests wait for each other where pytest has several workers (`pytest -n`): lanes.

Tests of a lane run one after another in one worker. Those of `tests/mesh` are all of one: each has
a mesh of some ten processes, and two such would wait for each other. Beside it, others use what a
mesh that waits leaves of the cores. Most of what is neither a mesh nor a simulation waits, too: for
processes, for deadlines. So there is a worker more than there are cores, which begins when no mesh
runs any more.
"""

from __future__ import annotations

import os
from collections.abc import Collection

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

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


def workers() -> int:
    """How many there are."""
    return _cores() + 1


def may_begin(pending: Collection[str], busy: int) -> bool:
    """Whether one more worker may have tests, beside so many that have some: `pending` are lanes
    with tests that have not run."""
    return MESH not in pending or busy < _cores()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


class Lanes(LoadScopeScheduling):
    """Gives each worker that has little left the next lane."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # they are in order

    def mark_test_complete(
        self, node: WorkerController, item_index: int, duration: float = 0
    ) -> None:
        """Who waited for the last mesh begins."""
        super().mark_test_complete(node, item_index, duration)
        done = self._split_scope(self.registered_collections[node][item_index])
        if done == MESH and MESH not in self._pending():
            for other in self.nodes:
                self._reschedule(other)

    def _assign_work_unit(self, node: WorkerController) -> None:
        others = [one for one in self.nodes if one is not node]
        busy = sum(self._pending_of(self.assigned_work[other]) > 0 for other in others)
        if may_begin(self._pending(), busy):
            super()._assign_work_unit(node)
            # A worker runs a test when it knows the next one.
            if self.workqueue and self._pending_of(self.assigned_work[node]) < 2:
                self._assign_work_unit(node)

    def _pending(self) -> set[str]:
        units = [self.workqueue, *self.assigned_work.values()]
        return {name for unit in units for name, tests in unit.items() if not all(tests.values())}

    def _split_scope(self, nodeid: str) -> str:
        return lane(nodeid)
