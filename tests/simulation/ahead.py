"""Schedules in which blocks travel, and go ahead of what is handed over while it is served.

Beside the faults of every schedule nodes of pipelines that run something are told that they will be
taken, when there is somebody to go on with it.

`python ahead.py FIRST COUNT PATIENCE` as schedules.py.
"""

from __future__ import annotations

from random import Random

from schedules import Schedule, table
from seeds import program

NOTICE_S = 5.0
FROM_S, BETWEEN_S = 2.2, 3.0


class CopyingSchedule(Schedule):
    """The same faults; what is fetched comes late, in part or not at all."""

    ahead_s = 1.0

    def __init__(self, seed: int) -> None:
        self._notices = Random(f"{seed} notices")
        super().__init__(seed)
        self._long.update(n for n in range(self._arrivals) if self._notices.random() < 0.7)
        at_s = FROM_S
        for _ in range(self._notices.choice((0, 1, 2))):
            self.world.clock.after(at_s + self._notices.random(), self._notice)
            at_s += BETWEEN_S

    def _notice(self) -> None:
        """A node of a pipeline that runs something, where another pipeline serves."""
        controller = self.world.controller
        if not controller.alive or controller.frozen:
            return
        view = controller.cluster.view
        serving = [head.route.formation_id for head in view.heads(self.world.clock.now_s)]
        busy = [name for name in serving if controller.ledger.streams(name)]
        if len(serving) < 2 or not busy:
            return
        node_id = self._notices.choice(view.members(self._notices.choice(busy))).node_id
        if self._lives(node_id):
            self.oracle.note("fault", "notice", node_id)
            self.disruptions += 1
            self.world.provider.notice(node_id, NOTICE_S, taken=True)


if __name__ == "__main__":
    program(CopyingSchedule, lambda schedule: schedule.hits, table)
