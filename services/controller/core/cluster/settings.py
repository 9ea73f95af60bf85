"""Shape and timings of the cluster."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from services.common.nodes import NodeShape
from services.common.phases import PipelinePhase
from services.controller.core.cluster.goals import Goal
from services.controller.core.cluster.pauses import LONGEST_S
from services.controller.core.strategy import FULL, Strategy


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Shape and timings (seconds) of the cluster."""

    first: Goal
    """The model that a new mesh serves."""
    initial: tuple[NodeShape, ...] = ()
    """Nodes to launch for the first plan; empty: they come by themselves."""
    expected_nodes: int = 4
    """A plan is asked for when so many are idle, or `settle_s` after the first, once none is on
    its way any more."""
    pipelines: int = 2
    phases: tuple[PipelinePhase, ...] = ()
    """Of those that placement plans, in their order."""
    planner: str = ""
    """The placement API's name of who makes the plan."""
    can_launch: bool = True
    """The provider starts nodes; else a replacement must register by itself."""
    strategy: Strategy = FULL
    spares: int = 0
    """Nodes without a place that are kept for one that is lost, where any may be."""
    budget_per_hour: float = 0.0
    """Dollars, of all nodes that run together, one that goes and its replacement included; 0 does
    not bind."""
    heartbeat_interval_s: float = 0.25
    """The regular one: of a mesh that is not too large for it."""
    beats_per_s: float = 500.0
    """No more are wanted of all nodes together: where there are more than so many allow, each is
    told to beat more seldom, and its silence counts from when it should have beaten."""
    glance_s: float = 0.25
    """The longest time between two looks at the cluster; the rest of a longer one was not watched,
    and is nobody's silence."""
    node_lost_s: float = 3.0
    """A node silent for this long is lost."""
    doubt_s: float = 1.0
    """No generation is moved to a node silent for this long."""
    stall_s: float = 2.0
    """A head silent for this long does not serve: its readers may leave it."""
    progress_s: float = 5.0
    """Nor does one that has work and makes no step for this long."""
    empty_node_lost_s: float = 15.0
    """The same for one that holds no stage: it imports and loads, and may hardly find time."""
    restart_grace_s: float = 3.0
    """Nobody counts as dead for this long after a restart, but for what the edge knows."""
    settle_s: float = 10.0
    launch_timeout_s: float = 60.0
    """A launched node that does not register within this is given up."""
    retry_s: float = 0.5
    """Pause before a failed launch, plan, load or form is tried again; it doubles from failure to
    failure."""
    retry_max_s: float = 30.0
    """The longest such pause, but for nodes that were paid for."""
    replace_max_s: float = 600.0
    """The longest pause before one more node replaces those that started and came to nothing."""
    shun_offer_max_s: float = LONGEST_S
    """The longest that an offer is left alone which refuses again and again."""
    stable_s: float = 10.0
    """A node that has served for so long came to something, whatever becomes of it."""
    load_attempts: int = 4
    """A node that fails to load a stage so often gives it up to another one, which has one."""
    ahead_s: float = 0.0
    """Blocks may go ahead of what is handed over for so long before it is sealed; 0: none do."""
    seal_s: float = 1.5
    """A node that will end in any case has its generations sealed this long before."""
    undeploy_grace_s: float = 60.0
    """What an undeployed model's pipelines have begun may take so long to end by itself."""
    switch_s: float = 1.0
    """Who is moved for the plan's sake waits so long for what follows the formation it was in, and
    goes to another one then."""
    lapse_s: float = 1.0
    """A notice counts no more when its node is there so long behind its deadline."""
    lost_kept_s: float = 60.0
    """A lost node is shown this long."""
    block_positions: int = 16

    @property
    def basis(self) -> str:
        """What decides a plan, as JSON: a plan made for something else is of no use."""
        phases = {"phases": self.phases} if self.phases else {}  # once there were none
        return json.dumps(
            {
                **phases,
                "model": asdict(self.first.model),
                "layer_count": self.first.facts.layer_count,
                "planner": self.planner,
                "pipelines": self.pipelines,
                "initial": [_basis_of(shape) for shape in self.initial],
            },
            sort_keys=True,
        )

    def silence_s(self, works: bool) -> float:
        """How long a node may be silent before it is lost."""
        return self.node_lost_s if works else self.empty_node_lost_s


def _basis_of(shape: NodeShape) -> dict[str, Any]:
    """Without the backend that shapes have by default, so that it is as it was before they had any:
    a mesh whose controller is renewed goes on by its plan."""
    fields = asdict(shape)
    if shape.backend == NodeShape(0, 1.0).backend:
        del fields["backend"]
    return fields
