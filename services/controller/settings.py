"""Settings of the controller, from SHUNT_CONTROLLER_*."""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from services.common.addresses import checked_address, checked_addresses
from services.common.backends import parse_backends
from services.common.errors import InvalidArgument, ShuntError
from services.common.nodes import StageSpec
from services.common.phases import PipelinePhase, parse_phases
from services.common.speeds import parse_speeds
from services.common.stage_layout import parse_stages
from services.controller.core.cluster.goals import MAX_TARGET_S, Aim, Goal
from services.controller.core.cluster.question import Wishes
from services.controller.core.cluster.replanning import ReplanSettings
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.succession import SuccessionSettings
from services.controller.core.cluster.workload import WorkloadSettings
from services.controller.core.ledger.outcomes import LedgerSettings
from services.controller.core.model_facts import ModelFacts
from services.controller.core.strategy import STRATEGIES, Strategy
from services.controller.journal.place import PostgresPlace, SqlitePlace, place_of
from services.controller.kv_sources import Handover
from services.controller.providers.ec2.settings import Ec2Settings
from services.controller.providers.market_file import MarketScript, read_market
from services.controller.runtime import RuntimeSettings
from services.controller.service import ServiceLimits
from services.controller.supply import Provider, Supply, affordable, kinds_of
from services.controller.timings import RetentionSettings, TimingSettings

_NOT_UNIFORM = ("objective", "ttft_target_s", "tpot_target_s", "budget_per_hour")
"""What the planner of uniform degrees knows nothing of."""


class ControllerSettings(TimingSettings, RetentionSettings):
    """Names end in their unit; `_s` is seconds."""

    model_config = SettingsConfigDict(
        env_prefix="SHUNT_CONTROLLER_", frozen=True, extra="ignore", env_nested_delimiter="__"
    )

    shutdown_grace_s: float = Field(default=0.5, ge=0, le=600)
    """Told to stop, open calls have this long to end by themselves."""
    data_dir: Path = Path("shunt-data")
    """Engine logs, and the journal where nothing is said of it."""
    journal: str = Field(default="", repr=False)
    """sqlite:PATH, or postgresql://USER@HOST/DATABASE: then several controllers may share it, of
    which one leads; empty: a file in `data_dir`."""
    lease_s: float = Field(default=2.0, ge=0.2, le=60)
    """A leader that a shared journal has not heard of for so long is followed by a standby."""
    advertise_address: str = ""
    """Where engines find this service, host:port; empty: where it listens. Others that may lead
    stand behind it, between commas."""

    model_id: str = Field(default="smollm2-135m-instruct", min_length=1, max_length=256)
    """The model that a new mesh serves, by its name in the store."""
    model_digest: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """The version to serve; empty: the one that ran before, or at first the store's newest."""
    tensorstore_address: str = "127.0.0.1:7004"
    """host:port of the tensor store that knows the models."""
    store: str = ""
    """URI of the tensor store that nodes are told; empty, for local ones: grpc:// at its
    address."""
    placement_address: str = "127.0.0.1:7003"
    """host:port of placement, which makes the plans."""
    planner: Literal["proportional", "shuntserve", "exact", "alpaserve", "vllm"] = "proportional"
    """Which of placement's planners makes them."""
    pipelines: int = Field(default=2, ge=1, le=1000)
    """Pipelines of the first plan, where the planner is `proportional`."""

    replan: bool = True
    """Placement is asked again when nodes, offers, prices or the workload change, and a better
    plan is carried out while the mesh serves; otherwise only where an operator asks for it."""
    objective: Literal["throughput", "throughput-per-cost", "goodput-per-cost"] = "throughput"
    """What a plan is chosen for: requests a second, or those a dollar, or those a dollar that are
    expected under interruptions."""
    ttft_target_s: float = Field(default=0.0, ge=0, le=MAX_TARGET_S)
    """Longest mean time to the first token at the arrival rate; 0 does not bind."""
    tpot_target_s: float = Field(default=0.0, ge=0, le=MAX_TARGET_S)
    """Longest mean time per output token; 0 does not bind."""
    budget_per_hour: float = Field(default=0.0, ge=0, lt=1e9)
    """Dollars, of all nodes that run together; 0 does not bind."""
    nodes_min: int = Field(default=1, ge=0, le=10_000)
    """Least nodes of a plan, where there are so many; 0: none while nobody asks."""
    nodes_max: int = Field(default=0, ge=0, le=10_000)
    """Most nodes of a plan; 0: as many as at first."""
    spares: int = Field(default=0, ge=0, le=1000)
    """Nodes beside those of the plan that wait, loaded, for one that is lost: so many where any may
    be, and the budget has room."""
    strategy: str = "full"
    """What the mesh does when nodes come and go: all it can, or less, to be compared with."""
    handover: Handover = "auto"
    """How a generation that moves comes to what was computed of it: that is computed again, or
    blocks of the KV cache go where it goes, and what does not arrive is computed; auto: whichever
    its reader is expected to wait for less."""
    handover_keep_s: float = Field(default=5.0, gt=0, le=600)
    """Behind its seal, for so long others are told that blocks of a formation may be had, and its
    nodes do not end; engines keep them longer."""
    handover_fetch_s: float = Field(default=60.0, ge=0, le=600)
    """They are told so for longer, up to this, where blocks take longer over the link that was
    seen; what would take longer than that, or until a node is taken away, is computed."""
    handover_ahead_s: float = Field(default=10.0, ge=0, le=600)
    """Before that, blocks go ahead to where generations will go on, while their formation serves:
    for so long at most, and no longer than half of the time that a notice leaves."""
    sleep_s: float = Field(default=300.0, gt=0, le=1e6)
    """With `nodes_min` 0 there is no node once nobody has asked for so long; the first request
    then waits for one."""
    horizon_s: float = Field(default=1800.0, ge=1, le=1e8)
    """How long a plan is expected to last: what a change gains in it must beat its move."""
    replan_cool_down_s: float = Field(default=60.0, ge=0, le=86_400)
    """No improvement is looked for so soon behind a change."""
    replan_steady_s: float = Field(default=30.0, ge=0, le=86_400)
    """An offer counts for an improvement once it has stood so long."""
    replan_return_s: float = Field(default=10.0, ge=0, le=86_400)
    """A node that came by itself and is gone may come back for so long; then it is planned
    without."""
    workload_smooth_s: float = Field(default=60.0, gt=0, le=86_400)
    """Time constant of the means that a workload is."""
    shun_offer_s: float = Field(default=60.0, gt=0, le=600)
    """An offer that names a price, and whose node never came or is another one than was offered, is
    left alone for so long."""
    shun_offer_max_s: float = Field(default=1800.0, gt=0, le=86_400)
    """An offer that refuses again and again is left alone for ever longer, and at most so long."""

    provider: Provider = "local"
    """local: engine processes on this machine; docker: containers, by a launcher; ec2: instances;
    external: nodes come and go by themselves."""
    launcher_address: str = "127.0.0.1:7005"
    """Of the launcher that starts containers."""
    ec2: Ec2Settings = Field(default_factory=Ec2Settings, validate_default=True)
    """Of the provider that is called so."""
    node_speeds: str = "3:2,3:2"
    """Relative speeds of the local nodes, or containers, to launch; the planner deals them to
    pipelines."""
    stages: str = ""
    """Of every pipeline, as 0-1:tp1,2-5:tp2: layers and ranks of each; then nobody makes plans but
    an operator. Empty: the planner's choice."""
    phases: str = ""
    """A phase for each pipeline of a plan that placement makes, in the order of their ids, as
    prefill,decode; those behind the last one do both. Empty: all do."""
    node_memory_bytes: int = Field(default=2 << 30, gt=0)
    """Memory of a local node, or of one of the market file that does not say it."""
    node_device_type: str = "cpu"
    """Its device, by its name in placement's catalogue."""
    node_ranks: int = Field(default=1, ge=1, le=4)
    """Processes of a local node that may share a stage, where the planner wants that."""
    node_backend: str = "native"
    """What computes the stages of local nodes: of the pipelines of `node_speeds`, in turn, as
    native,vllm; and of what a market file offers without saying it, the first."""
    vllm_python: Path = Path(sys.executable)
    """The interpreter of local nodes that compute with vLLM: it has an environment of its own."""
    market_file: Path | None = None
    """YAML: what the local provider offers, and what happens to it; without one there are nodes of
    `node_speeds` as many as are asked for, and nobody names their price."""
    market_run: str = Field(default="", max_length=64)
    """The events of the market file are played once a run, whatever restarts in it."""
    expected_nodes: int = Field(default=4, ge=1, le=10_000)
    """External nodes to wait for before the first plan."""
    end_nodes_on_stop: bool = False
    """SIGTERM ends the local nodes too; otherwise they serve on and are adopted at the start."""

    @field_validator("journal")
    @classmethod
    def _is_a_place(cls, value: str) -> str:
        try:
            place_of(value, Path())
        except InvalidArgument as error:
            raise ValueError(error.message) from None
        return value

    @field_validator("tensorstore_address", "placement_address", "launcher_address")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        return checked_address(value)

    @field_validator("advertise_address")
    @classmethod
    def _is_found_there(cls, value: str) -> str:
        return checked_addresses(value) if value else value

    @field_validator("nodes_max")
    @classmethod
    def _no_less_than_nodes_min(cls, value: int, info: ValidationInfo) -> int:
        if value and value < info.data.get("nodes_min", 0):
            raise ValueError(f"less than nodes_min, which is {info.data['nodes_min']}")
        return value

    @field_validator("strategy")
    @classmethod
    def _is_known_and_fits(cls, value: str, info: ValidationInfo) -> str:
        if value not in STRATEGIES:
            raise ValueError(f"known are {', '.join(STRATEGIES)}")
        for name in _NOT_UNIFORM if STRATEGIES[value].uniform else ():
            default = cls.model_fields[name].default
            if info.data.get(name, default) != default:
                raise ValueError(f"{value} takes no account of {name}: leave one of both out")
        return value

    @field_validator("ec2")
    @classmethod
    def _has_what_it_needs(cls, value: Ec2Settings, info: ValidationInfo) -> Ec2Settings:
        if info.data.get("provider") == "ec2":
            if value.lacking:
                raise ValueError(f"the provider ec2 needs {value.lacking}")
            if not info.data.get("store"):
                raise ValueError("the provider ec2 needs a store that nodes reach: set store, too")
        return value

    @field_validator("node_speeds")
    @classmethod
    def _speeds_are_numbers(cls, value: str) -> str:
        try:
            parse_speeds(value)
        except InvalidArgument as error:
            raise ValueError(error.message) from None
        return value

    @field_validator("stages")
    @classmethod
    def _stages_have_their_nodes(cls, value: str, info: ValidationInfo) -> str:
        if not value:
            return value
        try:
            stages = parse_stages(value)
        except InvalidArgument as error:
            raise ValueError(error.message) from None
        strategy = info.data.get("strategy", "full")
        if STRATEGIES[strategy].uniform:
            raise ValueError(f"{strategy} makes stages of its own: leave one of both out")
        launches = info.data.get("provider") in ("local", "docker")
        speeds = info.data.get("node_speeds", "") if launches else ""
        for part in parse_speeds(speeds) if speeds else ():
            if len(part) != len(stages):
                raise ValueError(
                    f"{len(stages)} stages, and node_speeds has a pipeline of {len(part)} nodes"
                )
        return value

    @field_validator("phases")
    @classmethod
    def _phases_can_be_split(cls, value: str, info: ValidationInfo) -> str:
        if not value:
            return value
        try:
            phases = parse_phases(value)
        except InvalidArgument as error:
            raise ValueError(error.message) from None
        launches = info.data.get("provider") in ("local", "docker")
        speeds = info.data.get("node_speeds", "") if launches else ""
        pipelines = len(parse_speeds(speeds)) if speeds else len(phases)
        if len(phases) > pipelines:
            raise ValueError(f"{len(phases)} phases for {pipelines} pipelines of node_speeds")
        strategy = info.data.get("strategy", "full")
        if not STRATEGIES[strategy].migration:
            raise ValueError(f"{strategy} hands nothing on: leave one of both out")
        return value

    @field_validator("node_backend")
    @classmethod
    def _backends_have_their_pipelines(cls, value: str, info: ValidationInfo) -> str:
        try:
            backends = parse_backends(value)
        except InvalidArgument as error:
            raise ValueError(error.message) from None
        speeds = info.data.get("node_speeds", "")
        pipelines = len(parse_speeds(speeds)) if speeds else len(backends)
        if len(backends) > pipelines:
            raise ValueError(f"{len(backends)} backends for {pipelines} pipelines of node_speeds")
        return value

    @field_validator("market_file")
    @classmethod
    def _the_market_can_be_had(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        given = info.data  # without what was refused itself
        if path is None or not {*_OF_A_MARKET} <= given.keys():
            return path
        if (provider := given.get("provider")) != "local":
            raise ValueError(f"the provider {provider} has no market")
        try:
            script = _read_market(path, *(given[name] for name in _OF_A_MARKET))
            shapes = script.shapes(kinds_of(given.get("node_speeds", ""), given["node_backend"]))
            budget = given.get("budget_per_hour", 0.0)
            if shapes and not affordable(script.offers, shapes, budget):
                raise ValueError(f"no node of node_speeds is to be had for {budget:g} an hour")
        except ShuntError as error:
            raise ValueError(error.message) from None
        return path

    @property
    def journal_place(self) -> SqlitePlace | PostgresPlace:
        """Where the journal is kept."""
        return place_of(self.journal, self.data_dir)

    @property
    def planned_stages(self) -> tuple[StageSpec, ...]:
        """Of every pipeline, where they are given."""
        return parse_stages(self.stages) if self.stages else ()

    @property
    def planned_phases(self) -> tuple[PipelinePhase, ...]:
        """Of pipelines in their order, where they are given."""
        return parse_phases(self.phases) if self.phases else ()

    @cached_property
    def market(self) -> MarketScript | None:
        """What the market file says."""
        if self.market_file is None:
            return None
        return _read_market(self.market_file, *(getattr(self, name) for name in _OF_A_MARKET))

    @cached_property
    def supply(self) -> Supply:
        """What nodes are launched from."""
        return Supply(
            provider=self.provider,
            ec2=self.ec2,
            market=self.market,
            node_speeds=self.node_speeds,
            node_backend=self.node_backend,
            memory_bytes=self.node_memory_bytes,
            device_type=self.node_device_type,
            ranks=max([self.node_ranks, *(stage.tp_degree for stage in self.planned_stages)]),
            nodes_min=self.nodes_min,
            nodes_max=self.nodes_max,
            budget_per_hour=self.budget_per_hour,
        )

    @property
    def capabilities(self) -> Strategy:
        """What the strategy is able to do."""
        return STRATEGIES[self.strategy]

    @property
    def makes_plans(self) -> str:
        """The placement API's name of the planner: of uniform degrees there is one."""
        return "spotserve" if self.capabilities.uniform else self.planner

    @property
    def wishes(self) -> Wishes:
        return Wishes(
            self.budget_per_hour,
            self.nodes_min,
            self.nodes_max or len(self.supply.initial_nodes) or self.expected_nodes,
            self.horizon_s,
        )

    @property
    def aim(self) -> Aim:
        """Of the model that the settings name."""
        return Aim(self.objective, self.ttft_target_s, self.tpot_target_s)

    @property
    def replanning(self) -> ReplanSettings:
        return ReplanSettings(
            cool_down_s=0.0 if self.capabilities.uniform else self.replan_cool_down_s,
            steady_s=self.replan_steady_s,
            return_s=self.replan_return_s,
            measured_s=min(self.replan_steady_s, self.workload_smooth_s / 2),
            counts_arrivals=not self.aim.is_plain,
            counts_lengths=self.capabilities.weights_stay,
            anew=self.capabilities.uniform,
        )

    @property
    def succession(self) -> SuccessionSettings:
        given = self.stages and not self.capabilities.weights_stay
        return SuccessionSettings(self.replan and not given, self.sleep_s)

    @property
    def workloads(self) -> WorkloadSettings:
        return WorkloadSettings(self.workload_smooth_s)

    def cluster(self, facts: ModelFacts) -> ClusterSettings:
        initial = self.supply.initial_nodes
        return ClusterSettings(
            first=Goal(facts, self.aim),
            planner=self.makes_plans,
            strategy=self.capabilities,
            initial=initial,
            expected_nodes=len(initial) or self.expected_nodes,
            pipelines=min(self.pipelines, len(initial) or self.pipelines),
            phases=self.planned_phases,
            can_launch=self.provider != "external",
            spares=self.spares,
            budget_per_hour=self.budget_per_hour,
            heartbeat_interval_s=self.heartbeat_interval_s,
            beats_per_s=self.beats_per_s,
            glance_s=self.glance_s,
            stall_s=self.stall_s,
            progress_s=self.progress_s,
            node_lost_s=self.node_lost_s,
            empty_node_lost_s=self.empty_node_lost_s,
            restart_grace_s=self.restart_grace_s,
            settle_s=self.settle_s,
            launch_timeout_s=self.launch_timeout_s + self.supply.longest_launch_s,
            ahead_s=0.0 if self.hands_over_by == "replay" else self.handover_ahead_s,
            retry_s=self.retry_s,
            retry_max_s=self.retry_max_s,
            replace_max_s=self.replace_max_s,
            stable_s=self.stable_s,
            shun_offer_max_s=self.shun_offer_max_s,
            load_attempts=self.load_attempts,
            undeploy_grace_s=self.undeploy_grace_s,
        )

    @property
    def ledger(self) -> LedgerSettings:
        return LedgerSettings(
            retention_s=self.retention_s,
            parked_retention_s=self.parked_retention_s,
            stored_retention_s=self.responses_keep_s,
            max_stored=self.max_responses,
            same_head_after_s=self.same_head_after_s,
            own_arithmetic_s=self.own_arithmetic_s,
            max_generations=self.max_generations,
            max_ended=self.max_ended_generations,
            max_parked=self.max_parked_generations,
            retry_window_s=self.retry_window_s,
            strategy=self.capabilities,
        )

    @property
    def runtime(self) -> RuntimeSettings:
        return RuntimeSettings(
            terminate_grace_s=self.terminate_grace_s,
            shun_offer_s=self.shun_offer_s,
        )

    @property
    def hands_over_by(self) -> Handover:
        """Where generations begin anew at each head, nothing that was computed goes with them."""
        return self.handover if self.capabilities.migration else "replay"

    @property
    def limits(self) -> ServiceLimits:
        return ServiceLimits(
            resume_wait_s=self.resume_wait_s,
            checkpoints_in_flight=self.checkpoints_in_flight,
        )


_OF_A_MARKET = ("node_memory_bytes", "node_device_type", "node_backend")
"""What a market file need not say."""


def _read_market(path: Path, memory_bytes: int, device_type: str, backends: str) -> MarketScript:
    backend = parse_backends(backends)[0]
    return read_market(path, memory_bytes=memory_bytes, device_type=device_type, backend=backend)
