"""What a simulated mesh is made of, and what fails in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from services.common.generation import LayerRange
from services.common.nodes import NodeShape
from services.controller.core.cluster.goals import Goal, Goals
from services.controller.core.cluster.market import MAX_COUNT, Offer
from services.controller.core.cluster.question import Wishes
from services.controller.core.cluster.replanning import ReplanSettings
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.succession import SuccessionSettings
from services.controller.core.cluster.workload import WorkloadSettings
from services.controller.core.ledger.outcomes import LedgerSettings
from services.controller.core.model_facts import ModelFacts
from services.engine.core.head_settings import HeadSettings
from services.engine.core.prefix_fetching import PrefixSettings
from services.engine.core.scheduler import SchedulerSettings
from services.router.core.follower_settings import FollowerSettings

FACTS = ModelFacts("model", "d1", 30, 1 << 16, 8192, "{}")
MODEL = FACTS.ref
OTHER = replace(FACTS, model_id="other", digest="o1")
ONE = Goals.of(Goal(FACTS))
BOTH = ONE.adding(Goal(OTHER))
SHAPE = NodeShape(1 << 30, 1.0, device_count=4)
LAYERS = (LayerRange(0, 18), LayerRange(18, 30))
LAYER_BYTES = 8 << 20
"""What a layer takes of a node's memory."""
ANY = Offer("any", "any", SHAPE, count=MAX_COUNT, launch_s=0.3)
"""A market that never has less, at no price."""


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """Settings of every core, times scaled for short schedules."""

    head: HeadSettings = field(default_factory=lambda: HeadSettings(detach_s=2.0, keep_s=5.0))
    ledger: LedgerSettings = field(
        default_factory=lambda: LedgerSettings(retention_s=20.0, parked_retention_s=60.0)
    )
    follower: FollowerSettings = field(
        default_factory=lambda: FollowerSettings(recover_s=20.0, resume_timeout_s=3.0, reach_s=3.0)
    )
    cluster: ClusterSettings = field(
        default_factory=lambda: ClusterSettings(
            first=Goal(FACTS),
            initial=(SHAPE,) * 4,
            restart_grace_s=1.5,
            progress_s=2.0,
            settle_s=2.0,
            lapse_s=0.2,
            launch_timeout_s=3.0,
            lost_kept_s=10.0,
            retry_max_s=2.0,
            replace_max_s=2.0,
            stable_s=1.0,
            shun_offer_max_s=4.0,
            load_attempts=3,
        )
    )
    """Of the next controller."""
    goals: Goals = ONE
    """What is deployed."""
    scheduler: SchedulerSettings = field(
        default_factory=lambda: SchedulerSettings(
            token_budget=8, max_sequences=2, min_overlap_sequences=2, min_overlap_rows=12
        )
    )
    kv_blocks: int = 64
    """Of every engine; each holds the ids of BLOCK_SIZE positions."""
    room: int = 2
    """Stages that fit into an engine's memory."""
    progress_s: float = 2.0
    """A step that takes this much longer than expected is stuck."""
    routers: int = 2
    claims: bool = False
    """Routers ask for what runs though nobody reads it."""
    exact: bool = True
    """A head goes on as the one before would have: its ids depend on those before them alone."""
    offers: tuple[Offer, ...] = (ANY,)
    """Of the provider, at first."""
    first_layers: tuple[LayerRange, ...] = LAYERS
    """Of each pipeline of a first plan."""
    wishes: Wishes | None = None
    """What plans are made for; None: no other plan is asked for."""
    replanning: ReplanSettings = field(
        default_factory=lambda: ReplanSettings(
            settle_s=0.1,
            cool_down_s=1.5,
            steady_s=0.5,
            measured_s=0.5,
            return_s=0.5,
            ask_again_s=0.2,
            ask_again_max_s=0.8,
        )
    )
    succession: SuccessionSettings = field(default_factory=lambda: SuccessionSettings(sleep_s=4.0))
    workloads: WorkloadSettings = field(
        default_factory=lambda: WorkloadSettings(smooth_s=1.0, router_gone_s=2.0)
    )
    shun_offer_s: float = 2.0
    look_s: float = 0.1
    """Between two looks at whether another plan is to be asked for."""
    load_s: float = 0.5
    hold_timeout_s: float = 2.0
    """The longest that an engine may take to load."""
    step_s: float = 0.03
    """A step's way through all stages."""
    exits_seen: bool = True
    """The provider tells the controller when a process it started dies."""
    launch_fails: float = 0.0
    launch_lost: float = 0.0
    """Share of the launches of which nobody hears again."""
    plan_fails: float = 0.0
    load_fails: float = 0.0
    kv_travels: bool = False
    """Blocks of what a drain seals are kept, and fetched by who goes on with it."""
    prefixes: PrefixSettings = field(default_factory=lambda: PrefixSettings(fetch_s=0.0))
    """Of what pipelines fetch of each other's prefix caches."""
    other_class: float = 0.0
    """Share of the nodes whose arithmetic is of another class."""
