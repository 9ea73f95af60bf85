"""Who starts and ends the nodes of a simulated mesh, and tells the controller how they fare."""

from __future__ import annotations

from collections.abc import Callable

from services.common.nodes import NodeShape
from simulator.environment.addresses import CONTROLLER
from simulator.environment.environment import Environment
from simulator.environment.network import Process


class SimulatedProvider:
    """A cloud: it is no process of the mesh, and outlives every one of them."""

    def __init__(
        self, environment: Environment, start: Callable[[str, NodeShape], Process]
    ) -> None:
        """`start` makes a node's process."""
        self.environment = environment
        self.failed_launches = self.lost_launches = 0
        self.nodes: dict[str, Process] = {}
        """The newest process of each node, dead or alive."""
        self._start = start
        self._shapes: dict[str, NodeShape] = {}
        self._deadlines: dict[str, float] = {}
        """When each node that was given notice is taken away."""

    def launch(self, node_id: str, shape: NodeShape) -> None:
        """Starts a node's process, or fails to, or says nothing and starts none."""
        environment = self.environment
        if environment.random.random() < environment.settings.launch_lost:
            self.lost_launches += 1
        elif environment.fails("launch", environment.settings.launch_fails):
            self.failed_launches += 1
            environment.network.tell(CONTROLLER, "launch_failed", node_id, after_s=0.05)
        else:
            environment.clock.after(environment.settings.launch_s, self._started, node_id, shape)

    def adopt(self, node_id: str) -> bool:
        """Whether a node that an earlier controller launched lives, as far as anybody sees; a
        notice that it was given is given again."""
        process = self.nodes.get(node_id)
        if process is None or not self.environment.settings.exits_seen:
            return True
        if process.alive and node_id in self._deadlines:
            self._tell_notice(node_id)
        return process.alive

    def notice(self, node_id: str, notice_s: float, *, taken: bool) -> None:
        """A node will be taken away; of several notices the earliest counts. Some lapse."""
        deadline_s = self.environment.clock.now_s + notice_s
        if deadline_s >= self._deadlines.get(node_id, deadline_s + 1.0):
            return
        self._deadlines[node_id] = deadline_s
        self._tell_notice(node_id)
        if taken:
            self.environment.clock.after(notice_s, self._take_away, self.nodes[node_id])

    def _tell_notice(self, node_id: str) -> None:
        deadline_s, network = self._deadlines[node_id], self.environment.network
        network.tell(CONTROLLER, "node_noticed", node_id, deadline_s, after_s=0.01)

    def _take_away(self, process: Process) -> None:
        """At the deadline, ready or not."""
        if process.alive:
            process.kill()

    def restart(self, node_id: str) -> None:
        """Killed, and started again under the same node name by something outside."""
        self.nodes[node_id].kill()
        self._started(node_id, self._shapes[node_id])

    def terminate(self, node_id: str) -> None:
        """Ends a node's process."""
        process = self.nodes.get(node_id)
        if process is not None and process.alive:
            process.kill()

    def _started(self, node_id: str, shape: NodeShape) -> None:
        process = self._start(node_id, shape)
        self._deadlines.pop(node_id, None)
        process.on_exit = lambda: self._exited(node_id, process.name)
        self.nodes[node_id], self._shapes[node_id] = process, shape

    def _exited(self, node_id: str, incarnation: str) -> None:
        if self.environment.settings.exits_seen:
            network = self.environment.network
            network.tell(CONTROLLER, "node_exited", node_id, incarnation, after_s=0.02)
