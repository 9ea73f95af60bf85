"""What a steady service costs on spot supply that comes and goes, by who decides what runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.experiment import Experiment, Ground, Size
from experiments.fleets import Play, cut, mean, played, scenario_at
from experiments.supply import Change, drawn, events, of_counts, of_instances
from experiments.table import Column, Rows
from services.controller.core.cluster.market import Offer
from services.controller.providers.market_file import MarketEvent
from simulator.fleet.result import Outcome
from simulator.fleet.scenario import Scenario, StageRow, read_scenario

FOLDER = Path(__file__).parent
ZONES = ("zone-a", "zone-b")
TRACES = {"zone-a": "bamboo/g4dn-xlarge-1c.csv", "zone-b": "bamboo/g4dn-xlarge-1d.csv"}
NOTICE_S = 120.0
SPOTSERVE = "spotserve/trace/trace_full/g4dn.csv"
HORIZON_S = {Size.TINY: 120.0, Size.QUICK: 900.0, Size.FULL: 7200.0}
FIRM_MOST = 24
"""Nodes on demand, while whole traces pass."""
SERVED = 9
"""Nodes that they begin with, when so many are there."""
ON_DEMAND, FULL, RISK, SKYSERVE = "on demand", "full", "full, with risk", "skyserve"
POLICIES = {
    Size.TINY: (ON_DEMAND, FULL, SKYSERVE),
    Size.QUICK: (ON_DEMAND, FULL, SKYSERVE),
    Size.FULL: (ON_DEMAND, FULL, RISK, SKYSERVE),
}
COLUMNS = (
    Column("finished", ".0f"),
    Column("of", ".0f"),
    Column("SLO attainment", ".1%"),
    Column("TTFT p99 s", ".1f"),
    Column("e2e p99 s", ".1f"),
    Column("$", ".2f"),
    Column("below on demand", ".1%"),
    Column("to be had", ".1%"),
    Column("node time", ".2f"),
    Column("spot node time", ".0%"),
    Column("taken", ".0f"),
    Column("tokens again", ".0f"),
)
Supply = dict[str, tuple[Change, ...]]


def under(scenario: Scenario, name: str, supply: Supply) -> Scenario:
    """Its spot zones have this supply."""
    offers = tuple(
        replace(offer, count=supply[offer.offer_id][0].count) if offer.spot else offer
        for offer in scenario.offers
    )
    happens = [one for zone in ZONES for one in events(zone, supply[zone], NOTICE_S)]
    happens.sort(key=lambda event: event.at_s)
    by_id = {offer.offer_id: offer for offer in offers}
    initial = tuple((by_id[offer.offer_id], count) for offer, count in scenario.initial)
    return replace(scenario, name=name, offers=offers, events=tuple(happens), initial=initial)


def flowing(scenario: Scenario, horizon_s: float, supply: Supply) -> Scenario:
    """As a flow while a whole trace passes, nodes at first where there are some."""
    left, initial = SERVED, list[tuple[Offer, int]]()
    offers = tuple(
        offer if offer.spot else replace(offer, count=FIRM_MOST) for offer in scenario.offers
    )
    for offer in offers:
        count = min(left, supply[offer.offer_id][0].count) if offer.spot else 0
        left -= count
        if count:
            initial.append((offer, count))
    stages = [
        (StageRow(offer=offer.offer_id, layers=scenario.costs.model.layers, tp=1),)
        for offer, count in initial
        for _ in range(count)
    ]
    document = scenario.document.model_copy(update={"first_plan": tuple(stages)})
    return cut(
        replace(scenario, offers=offers, initial=tuple(initial), document=document), horizon_s
    )


def by(policy: str, scenario: Scenario) -> Play:
    """The row of a supply under a policy."""
    row = f"{scenario.name}: {policy}"
    if policy == ON_DEMAND:
        (firm,) = (offer for offer in scenario.offers if not offer.spot)
        count = sum(count for _, count in scenario.initial)
        stage = StageRow(offer=firm.offer_id, layers=scenario.costs.model.layers, tp=1)
        document = scenario.document.model_copy(update={"first_plan": ((stage,),) * count})
        alone = replace(scenario, offers=(firm,), initial=((firm, count),), events=())
        return Play(row, replace(alone, document=document))
    if policy == RISK:
        objective = scenario.document.objective.model_copy(update={"name": "goodput-per-cost"})
        document = scenario.document.model_copy(update={"objective": objective})
        return Play(row, replace(scenario, document=document))
    return Play(row, scenario, policy)


def supplies(ground: Ground) -> dict[str, Supply]:
    """Two zones that are drawn; and bamboo's, where they are there."""
    length_s = HORIZON_S[ground.size]
    calm_s = {Size.TINY: 30.0, Size.QUICK: 200.0, Size.FULL: 600.0}[ground.size]
    found: dict[str, Supply] = {
        "drawn": {
            zone: drawn(zone, length_s=length_s, least=0, most=6, calm_s=calm_s) for zone in ZONES
        }
    }
    files = {zone: ground.public(name) for zone, name in TRACES.items()}
    if ground.size is not Size.TINY and all(files.values()):
        found["bamboo"] = {zone: of_counts(path, first=3) for zone, path in files.items() if path}
    return found


def traced(ground: Ground) -> dict[str, tuple[float, Supply]]:
    """Whole public traces, with their lengths: two zones of bamboo's while both last, and the one
    pool of SpotServe's."""
    found: dict[str, tuple[float, Supply]] = {}
    files = {zone: ground.public(name) for zone, name in TRACES.items()}
    if all(files.values()):
        zones = {zone: of_counts(path, first=3) for zone, path in files.items() if path}
        found["bamboo"] = min(changes[-1].at_s for changes in zones.values()), zones
    path = ground.public(SPOTSERVE)
    if path is not None:
        pool = of_instances(path, first=SERVED)
        found["spotserve"] = pool[-1].at_s, {ZONES[0]: pool, ZONES[1]: (Change(0.0, 0),)}
    return found


def measure(ground: Ground) -> Rows:
    """Every policy under every supply, dollars beside those on demand."""
    base = scenario_at(FOLDER / "nodes.yaml", HORIZON_S[ground.size])
    scenarios = [under(base, name, supply) for name, supply in supplies(ground).items()]
    if ground.size is not Size.TINY:
        days = read_scenario(FOLDER / "days.yaml")
        for name, (length_s, supply) in traced(ground).items():
            row = f"{name}, {length_s / 3600:.1f} h as a flow"
            scenarios.append(under(flowing(days, length_s, supply), row, supply))
    plays = [by(policy, one) for one in scenarios for policy in POLICIES[ground.size]]
    found = played(FOLDER.name, plays, ground)
    by_row = {f"{one.name}: {policy}": one for one in scenarios for policy in POLICIES[ground.size]}
    rows: Rows = {}
    for row, group in found.items():
        firm = found[f"{row.split(': ')[0]}: {ON_DEMAND}"]
        rows[row] = {
            "finished": sum(one.counts.finished for one in group) / len(group),
            "of": sum(one.counts.arrived for one in group) / len(group),
            "SLO attainment": mean(group, "slo_attainment"),
            "TTFT p99 s": mean(group, "ttft_s", "p99"),
            "e2e p99 s": mean(group, "e2e_s", "p99"),
            "$": mean(group, "cost"),
            "below on demand": 1 - mean(group, "cost") / mean(firm, "cost"),
            "to be had": to_be_had(by_row[row], node_time(firm)),
            "node time": node_time(group) / node_time(firm),
            "spot node time": spot_share(group),
            "taken": sum(sum(i.nodes for i in one.interruptions) for one in group) / len(group),
            "tokens again": mean(group, "tokens_replayed"),
        }
    return rows


def to_be_had(scenario: Scenario, nodes: float) -> float:
    """Of the dollars of so many nodes on demand what would be saved by as many that are each second
    the cheapest there are, ready at once and paid for once."""
    (firm,) = (offer for offer in scenario.offers if not offer.spot)
    counts = {offer.offer_id: offer.count for offer in scenario.offers if offer.spot}
    prices = {offer.offer_id: offer.price_per_hour or 0.0 for offer in scenario.offers}
    horizon_s, now_s, paid = scenario.document.horizon_s, 0.0, 0.0
    ends = [MarketEvent(horizon_s, firm.offer_id)]
    for event in [*(one for one in scenario.events if one.at_s < horizon_s), *ends]:
        left, rate = nodes, 0.0
        for name in sorted(counts, key=prices.__getitem__):
            held = min(left, counts[name])
            left, rate = left - held, rate + held * prices[name]
        paid += (event.at_s - now_s) * (rate + left * prices[firm.offer_id])
        now_s = event.at_s
        if event.count is not None:
            counts[event.offer_id] = event.count
    return 1 - paid / (horizon_s * nodes * prices[firm.offer_id])


def node_time(outcomes: Sequence[Outcome]) -> float:
    """Nodes at a look, in the mean."""
    looks = [sum(sample.nodes.values()) for one in outcomes for sample in one.samples]
    return sum(looks) / len(looks)


def spot_share(outcomes: Sequence[Outcome]) -> float:
    """Of the time of all nodes."""
    looks = [sample.nodes for one in outcomes for sample in one.samples]
    spot = sum(look.get(zone, 0) for look in looks for zone in ZONES)
    return spot / max(1, sum(sum(look.values()) for look in looks))


EXPERIMENT = Experiment(
    FOLDER.name,
    "8B at 15 req/s on instances of one L40S, two spot zones and on demand",
    COLUMNS,
    measure,
    "below on demand",
)
