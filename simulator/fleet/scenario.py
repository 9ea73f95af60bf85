"""A scenario: nodes or a market, a model, what is asked, and what is to be found out; from a file.

A mistake is told with file, line and field, of this file or of one that it names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise
from math import inf
from pathlib import Path
from random import Random
from typing import Annotated, Literal, Self, TypeVar

import yaml
from pydantic import Field, field_validator, model_validator

from services.common.errors import InvalidArgument, NotFound, ShuntError
from services.common.nodes import NodeShape
from services.common.phases import PipelinePhase
from services.common.yaml_file import Row, read_yaml
from services.controller.core.cluster.market import MAX_COUNT, Offer
from services.controller.providers.market_file import MarketEvent, MarketScript, read_market
from services.placement.command.clusterfile import read_cluster
from services.placement.estimate.calibration import load_calibration
from services.placement.estimate.catalogue import HardwareCatalogue, load_catalogue
from services.placement.estimate.cluster import CandidateNode, Workload, described
from services.placement.estimate.costs import Costs
from services.placement.estimate.engine import REPLAYED_ONLY, EngineProfile, read_profile
from services.placement.estimate.model import load_model
from simulator.fleet.strategies import FLEET_STRATEGIES, SKYSERVE
from simulator.fleet.workload import MAX_REQUESTS, MAX_TOKENS, Generator, Request, read_trace

MOST_NODES = 2_000
"""At first."""
MAX_HORIZON_S = 30 * 86_400.0
MAX_SEEDS = 1_000
BACKEND = "native"
Path_ = Annotated[str, Field(min_length=1, max_length=4096)]
Tokens = Annotated[float, Field(ge=1, le=MAX_TOKENS, allow_inf_nan=False)]
Variation = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Target = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
T = TypeVar("T")


class GeneratorRow(Row):
    """Requests that are drawn: Poisson arrivals, log-normal lengths."""

    requests: int = Field(ge=1, le=MAX_REQUESTS)
    rate_rps: float = Field(gt=0, le=1e6, allow_inf_nan=False)
    input_mean: Tokens
    output_mean: Tokens
    input_cv: Variation = 1.0
    output_cv: Variation = 1.0


class RateRow(Row):
    """Requests a second from a time on."""

    at_s: float = Field(ge=0, le=MAX_HORIZON_S, allow_inf_nan=False)
    rps: float = Field(ge=0, le=1e6, allow_inf_nan=False)


class FlowRow(Row):
    """Requests as amounts and rates, all of them alike."""

    rates: tuple[RateRow, ...] = Field(min_length=1, max_length=10_000)
    """In the order of their times; none come before the first."""
    input_mean: Tokens
    output_mean: Tokens

    @field_validator("rates")
    @classmethod
    def _in_order(cls, rates: tuple[RateRow, ...]) -> tuple[RateRow, ...]:
        for number, (before, one) in enumerate(pairwise(rates), 1):
            if one.at_s <= before.at_s:
                raise ValueError(f"{number}.at_s: {one.at_s:g} does not come after {before.at_s:g}")
        if not any(one.rps for one in rates):
            raise ValueError("no request comes")
        return rates


class WorkloadRow(Row):
    """A trace, or a generator, or one that is fitted to a trace, or a flow."""

    trace: Path_ | None = None
    generator: GeneratorRow | None = None
    flow: FlowRow | None = None
    redrawn: bool = False
    """Of the trace only arrival rate, lengths and their variation count: requests are drawn."""
    scale: float = Field(default=1.0, ge=0, le=1e6, allow_inf_nan=False)
    """Arrivals are so many times as far apart; 0: all come at once."""
    limit: int = Field(default=MAX_REQUESTS, ge=1, le=MAX_REQUESTS)
    concurrency: int = Field(default=0, ge=0, le=MAX_REQUESTS)
    """Requests come when fewer than so many are under way, whatever their times; 0: at their
    times."""
    tolerant: bool = False
    """Requests wait in the router until a pipeline has a place for them, as batches do."""
    places: int = Field(default=MAX_REQUESTS, ge=1, le=MAX_REQUESTS)
    """Generations that the router follows at once; more are refused."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.trace, self.generator, self.flow].count(None) != 2:
            raise ValueError("a workload has a trace, a generator or a flow")
        if self.flow is not None and not {"flow", "places"}.issuperset(self.model_fields_set):
            raise ValueError("with a flow goes nothing but places")
        if self.redrawn and self.trace is None:
            raise ValueError("what is redrawn is a trace")
        return self


class StageRow(Row):
    """A stage of the first plan, on a node of an offer."""

    offer: str = Field(min_length=1, max_length=128)
    layers: int = Field(ge=1, le=10_000)
    tp: int = Field(ge=1, le=64)


class ObjectiveRow(Row):
    """What plans are made for, and within which times a request counts for the goodput."""

    name: Literal["throughput", "throughput-per-cost", "goodput-per-cost"] = "throughput"
    ttft_s: Target | None = None
    tpot_s: Target | None = None
    planned: bool = False
    """Of `throughput` too, plans are made to keep these times; they are of the others anyway."""


class ReplicasRow(Row):
    """What `skyserve` keeps: replicas that should be ready, and spot ones beyond them."""

    target: int = Field(ge=1, le=MOST_NODES)
    extra: int = Field(default=0, ge=0, le=MOST_NODES)


class ScenarioDocument(Row):
    """The whole file."""

    version: Literal[1]
    cluster: Path_ | None = None
    """A cluster file, as `shunt plan` reads it: its nodes stay."""
    market: Path_ | None = None
    """A market file, as `shunt up --market` reads it; instance types are the catalogue's."""
    nodes: dict[str, Annotated[int, Field(ge=0, le=MOST_NODES)]] | None = None
    """At first, by offer; all that are offered where nothing is said."""
    first_plan: tuple[tuple[StageRow, ...], ...] = Field(default=(), max_length=64)
    """Pipelines, head first; the planner's choice where nothing is said."""
    phases: tuple[PipelinePhase, ...] = Field(default=(), max_length=64)
    """Of the first plan's pipelines, in their order; those behind the last one do both."""
    replans: bool = True
    """Otherwise the first plan stays: nodes that go are followed by their like, and that is all."""
    replicas: ReplicasRow | None = None
    """Of the strategy `skyserve`."""
    nodes_max: int = Field(default=0, ge=0, le=MAX_COUNT)
    """Most of a plan; 0: as many as are offered."""
    budget_per_hour: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)
    model: str = Field(min_length=1, max_length=4096)
    calibration: Path_ = "measured"
    engine_profile: Path_ | None = None
    workload: WorkloadRow
    strategies: tuple[str, ...] = Field(
        default=("full",), min_length=1, max_length=len(FLEET_STRATEGIES)
    )
    objective: ObjectiveRow = Field(default_factory=ObjectiveRow)
    horizon_s: float = Field(gt=0, le=MAX_HORIZON_S, allow_inf_nan=False)
    seeds: tuple[Annotated[int, Field(ge=0, lt=1 << 63)], ...] = Field(
        default=(0,), min_length=1, max_length=MAX_SEEDS
    )
    spread: float = Field(default=0.1, ge=0, lt=1, allow_inf_nan=False)
    """Starts and loads take their time, more or less by this share."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A file that was read, and those that it names."""

    name: str
    offers: tuple[Offer, ...]
    events: tuple[MarketEvent, ...]
    initial: tuple[tuple[Offer, int], ...]
    """Nodes at first, by offer."""
    catalogue: HardwareCatalogue
    costs: Costs
    document: ScenarioDocument
    trace: tuple[Request, ...]
    """Empty where requests are drawn."""

    def requests(self, seed: int) -> tuple[Request, ...]:
        """The same for the same seed; of those that are drawn none behind the horizon, unless
        they come when others have ended."""
        workload, random = self.document.workload, Random(f"requests {seed}")
        until_s = inf if workload.concurrency else self.document.horizon_s
        if workload.generator is not None:
            return Generator(**workload.generator.model_dump()).draw(random, until_s)
        if workload.redrawn:
            return Generator.fitted_to(self.trace).draw(random, until_s)
        return self.trace

    def node(self, name: str, offer: Offer) -> CandidateNode:
        """As placement sees a node of the offer."""
        kind = described(
            self.catalogue,
            instance_type=offer.instance_type,
            relative_speed=offer.shape.relative_speed,
            price_per_hour=offer.price_per_hour or 0.0,
            pool=offer.pool,
            spot=offer.spot,
            interruptions_per_hour=offer.interruptions_per_hour,
            backend=BACKEND,
        )
        return CandidateNode(name, kind)


def read_scenario(path: Path) -> Scenario:
    """Raises InvalidArgument, naming file, line and field, and NotFound."""
    document = _located(path, lambda: read_yaml(path, ScenarioDocument))
    catalogue = load_catalogue()
    for index, name in enumerate(document.strategies):
        if name not in FLEET_STRATEGIES:
            known = ", ".join(FLEET_STRATEGIES)
            raise _wrong(path, f"strategies.{index}", f"{name[:40]!r} is none of {known}")
    if SKYSERVE.name in document.strategies and document.replicas is None:
        raise _wrong(path, "replicas", f"{SKYSERVE.name} has to be told how many")
    if document.workload.flow is not None:
        _check_without_phases(path, document)
    offers, events = _supply(path, document, catalogue)
    initial = _initial(path, document, offers)
    trace = _trace(path, document)
    model = _of_field(path, "model", lambda: load_model(document.model))
    _check_first_plan(path, document, initial, model.layers)
    calibrated = document.calibration
    if calibrated not in ("nominal", "measured"):
        calibrated = str(_beside(path, calibrated))
    calibration = _of_field(path, "calibration", lambda: load_calibration(calibrated))
    if document.engine_profile is not None:
        engine = _engine(_named(path, "engine_profile", document.engine_profile), catalogue)
        calibration = calibration.model_copy(update={"engine": engine})
    workload = _workload(document, trace)
    return Scenario(
        path.stem,
        offers,
        events,
        initial,
        catalogue,
        Costs(model, workload, calibration, catalogue),
        document,
        trace,
    )


def _check_without_phases(path: Path, document: ScenarioDocument) -> None:
    told = "a flow has none: its requests are not told apart"
    if document.phases:
        raise _wrong(path, "phases", told)
    for index, name in enumerate(document.strategies):
        if FLEET_STRATEGIES[name].weights_stay:
            raise _wrong(path, f"strategies.{index}", f"{name} changes phases, and {told}")


def _supply(
    path: Path, document: ScenarioDocument, catalogue: HardwareCatalogue
) -> tuple[tuple[Offer, ...], tuple[MarketEvent, ...]]:
    if (document.cluster is None) == (document.market is None):
        raise _wrong(path, "market", "a scenario has a cluster or a market")
    if document.market is not None:
        file = _named(path, "market", document.market)
        script = _located(file, lambda: read_market(file, memory_bytes=1, device_type="gpu"))
        return _shaped(file, script, catalogue), script.events
    file = _named(path, "cluster", document.cluster or "")
    nodes = _located(file, lambda: read_cluster(file, catalogue))
    kinds = [(kind, len(list(group))) for kind, group in groupby(nodes, lambda node: node.kind)]
    return tuple(
        Offer(
            f"{kind.type_name}-{index}",
            kind.type_name,
            NodeShape(kind.memory_bytes * kind.gpu_count, 1.0, kind.gpu.name, kind.gpu_count),
            count=count,
            price_per_hour=kind.price_per_hour,
            pool=kind.pool,
            spot=kind.spot,
            interruptions_per_hour=kind.interruptions_per_hour,
            declared=True,
        )
        for index, (kind, count) in enumerate(kinds)
    ), ()


def _shaped(file: Path, script: MarketScript, catalogue: HardwareCatalogue) -> tuple[Offer, ...]:
    """Offers with what their instance types have."""
    shaped = []
    for index, offer in enumerate(script.offers):
        try:
            kind = catalogue.instance(offer.instance_type)
        except NotFound as error:
            raise _wrong(file, f"offers.{index}.instance_type", error.message) from None
        gpu = catalogue.gpu(kind.gpu)
        shape = NodeShape(
            round(gpu.memory_gb * 1e9) * kind.gpu_count,
            offer.shape.relative_speed,
            gpu.name,
            kind.gpu_count,
        )
        shaped.append(replace(offer, shape=shape))
    return tuple(shaped)


def _initial(
    path: Path, document: ScenarioDocument, offers: tuple[Offer, ...]
) -> tuple[tuple[Offer, int], ...]:
    by_id = {offer.offer_id: offer for offer in offers}
    counts = {offer.offer_id: offer.count for offer in offers}
    place = "market" if document.market is not None else "cluster"
    if document.nodes is not None:
        place, counts = "nodes", document.nodes
        for name, count in counts.items():
            if name not in by_id:
                raise _wrong(path, f"nodes.{name}", "no offer is called so")
            if count > by_id[name].count:
                raise _wrong(path, f"nodes.{name}", f"{by_id[name].count} are offered at first")
    if not 1 <= sum(counts.values()) <= MOST_NODES:
        raise _wrong(path, place, f"1 to {MOST_NODES} nodes at first, not {sum(counts.values())}")
    return tuple((by_id[name], count) for name, count in counts.items() if count)


def _check_first_plan(
    path: Path, document: ScenarioDocument, initial: tuple[tuple[Offer, int], ...], layers: int
) -> None:
    nodes = {offer.offer_id: count for offer, count in initial}
    devices = {offer.offer_id: offer.shape.device_count for offer, _ in initial}
    left = dict(nodes)
    for index, pipeline in enumerate(document.first_plan):
        for place, stage in enumerate(pipeline):
            left[stage.offer] = left.get(stage.offer, 0) - 1
            if left[stage.offer] < 0:
                field = f"first_plan.{index}.{place}.offer"
                raise _wrong(path, field, f"{nodes.get(stage.offer, 0)} nodes of it are there")
            if stage.tp > devices[stage.offer]:
                field = f"first_plan.{index}.{place}.tp"
                raise _wrong(path, field, f"a node has {devices[stage.offer]} devices")
        held = sum(stage.layers for stage in pipeline)
        if held != layers:
            raise _wrong(path, f"first_plan.{index}", f"{held} layers, the model has {layers}")


def _engine(file: Path, catalogue: HardwareCatalogue) -> EngineProfile:
    engine = _located(file, lambda: read_profile(file))
    if engine.stages:
        raise _wrong(file, "stages", REPLAYED_ONLY)
    for name in engine.load_bytes_per_s_of:
        _of_field(file, f"load_bytes_per_s_of.{name}", partial(catalogue.instance, name))
    return engine


def _trace(path: Path, document: ScenarioDocument) -> tuple[Request, ...]:
    workload, horizon_s = document.workload, document.horizon_s
    if workload.trace is None:
        return ()
    file = _named(path, "workload.trace", workload.trace)
    found = read_trace(file, workload.limit, workload.scale)
    if found[0].arrival_s >= horizon_s and not workload.concurrency and not workload.redrawn:
        reason = f"its first request comes at {found[0].arrival_s:g} s, behind the horizon"
        raise _wrong(path, "workload.trace", reason)
    return found


def _workload(document: ScenarioDocument, trace: tuple[Request, ...]) -> Workload:
    """What placement is told of it: means, and no rate, for that is measured."""
    drawn = document.workload.generator or document.workload.flow
    if drawn is not None:
        return Workload(round(drawn.input_mean), round(drawn.output_mean))
    count = len(trace)
    return Workload(
        max(1, round(sum(one.input for one in trace) / count)),
        max(1, round(sum(one.output for one in trace) / count)),
    )


def _beside(path: Path, name: str) -> Path:
    """Names in a file count from where it lies."""
    return path.parent / Path(name).expanduser()


def _named(path: Path, field: str, name: str) -> Path:
    file = _beside(path, name)
    if not file.is_file():
        raise _wrong(path, field, f"no file {file.name}")
    return file


def _of_field(path: Path, field: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except ShuntError as error:
        raise _wrong(path, field, error.message) from None


def _located(path: Path, read: Callable[[], T]) -> T:
    """What is read of a YAML file; a mistake in it is told with its line."""
    try:
        return read()
    except InvalidArgument as error:
        field = error.field
        if not field:  # it is about the file, and says where
            raise
        reason = error.message.removeprefix(f"{path.name}: ").removeprefix(f"{field}: ")
        raise _wrong(path, field, reason) from None


def _wrong(path: Path, field: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"{path.name}:{line_of(path, field)}: {field}: {reason}", field=field)


def line_of(path: Path, field: str) -> int:
    """Where a field stands in a YAML file, its parts joined by dots; of one that is not there, the
    entry that it would be in."""
    try:
        node = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        return error.problem_mark.line + 1 if error.problem_mark is not None else 1
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return 1
    line, left = 1, field
    while left:
        if isinstance(node, yaml.MappingNode):
            named = (
                (key, value) for key, value in node.value if f"{left}.".startswith(f"{key.value}.")
            )
            found = next(named, None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
            left = left[len(found[0].value) + 1 :]
        elif isinstance(node, yaml.SequenceNode):
            part, _, left = left.partition(".")
            if not part.isdecimal() or int(part) >= len(node.value):
                break
            node = node.value[int(part)]
            line = node.start_mark.line + 1
        else:
            break
    return line
