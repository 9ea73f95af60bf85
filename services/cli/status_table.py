"""What `shunt status` and `shunt up` show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.cli.tables import text_table
from services.cli.why import age, layers_text

NO_PIPELINE = "no pipeline is ready"
"""What a router says that has nothing to say but what the pipelines' states do."""
_NAMED = 6
"""Pipelines of a deployment that are named; more are counted."""
_FAULTS = {
    "start": "nodes of {pipeline} come to nothing, {node} last",
    "load": "{node} cannot load its stage of {pipeline}",
    "form": "{pipeline} does not come to stand",
    "plan": "there is no plan",
    "spare": "spares come to nothing, {node} last",
}
_COLOURS = {
    "ready": "green",
    "idle": "cyan",
    "spare": "blue",
    "starting": "yellow",
    "waiting": "yellow",
    "loading": "yellow",
    "draining": "magenta",
    "lost": "red",
    "down": "red",
}


def status_table(status: dict[str, Any]) -> Group:
    """What keeps failing, the models, the plan, then tables of the services, the pipelines with
    their nodes, the market where it names prices, and the generations."""
    services = [_services(status)] if status["services"] else []  # elsewhere there are none here
    tables = *services, _pipelines(status), *_machines(status), *_market(status)
    asked = map(workload_line, status["workloads"])
    head = [*_faults(status), *_models(status["deployments"]), *_plan(status)]
    return Group(*head, *tables, *asked, _generations(status))


def _faults(status: dict[str, Any]) -> list[RenderableType]:
    waiting = [s for s in status["services"] if s["reason"] and s["reason"] != NO_PIPELINE]
    lines = [f"{service['name']} takes no requests: {service['reason']}" for service in waiting]
    lines += [fault_line(fault) for fault in status["faults"]]
    return [Text(line, style="red") for line in lines]


def fault_line(fault: dict[str, Any]) -> str:
    """One fault in words, its cause last."""
    names = {"node": fault["node"], "pipeline": fault["pipeline"] or "the first plan"}
    what = _FAULTS[fault["kind"]].format(**names)
    often = "" if fault["failures"] == 1 else f", {fault['failures']} times"
    again = ", not tried again" if fault["permanent"] else ""
    return f"{what}{often}{again}: {fault['cause']}"


def _models(deployments: list[dict[str, Any]]) -> list[RenderableType]:
    """One alone needs no more than its name; of several each says what it is served for."""
    lines: list[RenderableType] = []
    for deployment in deployments:
        line = f"{deployment['model']}, version {deployment['digest'][:12]}"
        if len(deployments) > 1:
            ready = deployment["ready_pipelines"]
            line += f", for {deployment['objective']}, {ready} pipelines ready"
        lines.append(line)
        if deployment["unusable"]:
            lines.append(f"[red]it cannot be served: {deployment['unusable']}[/]")
        if deployment["newer_in_store"]:
            newer = deployment["newer_in_store"][:12]
            lines.append(f"[yellow]the store has version {newer} by now: a new start serves it[/]")
    return lines


def _plan(status: dict[str, Any]) -> list[RenderableType]:
    """Its number, age and last cause, and what serves each model."""
    plan = status["plan"]
    if plan is None:  # where the controller is away, nobody knows
        return [Text("no plan yet")] if status["model"]["id"] is not None else []
    since, causes = plan["adopted_unix_s"], plan["causes"]
    line = f"plan {plan['number']}"
    line += f", adopted {age(since)} ago" if since is not None else ""
    line += f", because of {', '.join(causes)}" if causes else ""
    if status["strategy"] not in (None, "full"):  # it lacks something
        line += f", by the strategy {status['strategy']}"
    return [Text(line), *(Text(f"  {_deployment(one)}") for one in plan["deployments"])]


def _deployment(deployment: dict[str, Any]) -> str:
    pipelines = deployment["pipelines"]
    names = ", ".join(pipelines) or "no pipeline"
    if len(pipelines) > _NAMED:
        names = f"{len(pipelines)} pipelines"
    return f"{deployment['model']} for {deployment['objective']}: {names}"


def _coloured(state: str) -> str:
    return f"[{_COLOURS.get(state, 'white')}]{state}[/]"


def _services(status: dict[str, Any]) -> Table:
    table = text_table("service", "state", "pid", "gRPC", "HTTP")
    for service in status["services"]:
        table.add_row(
            service["name"],
            _coloured(service["state"]),
            str(service["pid"] or ""),
            service["grpc"] or "",
            service["http"] or "",
        )
    return table


def _pipelines(status: dict[str, Any]) -> Table:
    table = text_table("pipeline", "state", "stage", "layers", "node", "node state", "pid")
    nodes = {node["id"]: node for node in status["nodes"]}
    placed = set()
    spares = {spare["node"]: layers_text(spare["held"]) for spare in status["spares"]}
    for pipeline in status["pipelines"]:
        for index, stage in enumerate(pipeline["stages"]):
            node = nodes.get(stage["node"], {})
            placed.add(stage["node"])
            table.add_row(
                pipeline["id"] if index == 0 else "",
                _coloured(pipeline["state"]) if index == 0 else "",
                str(index),
                layers_text([stage["layers"]]),
                stage["node"] or "",
                _coloured(node.get("state", "")),
                str(node.get("pid") or ""),
            )
    for node in status["nodes"]:
        if node["id"] not in placed and node["state"] != "lost":
            state, pid = _coloured(node["state"]), str(node["pid"] or "")
            table.add_row("", "", "", spares.get(node["id"], ""), node["id"], state, pid)
    return table


def _machines(status: dict[str, Any]) -> list[Table | str]:
    """What the nodes' machines are, one line for those that are alike and a column for what is
    known of any; what was declared has a mark."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for node in status["nodes"]:
        if node["state"] not in ("lost", "starting"):
            row = tuple(_fact(*column, node["machine"]) for column in _MACHINE)
            alike.setdefault(row, []).append(node["id"])
    known = [index for index in range(len(_MACHINE)) if any(row[index] for row in alike)]
    if not known:
        return []
    table = text_table("nodes", *(_MACHINE[index][0] for index in known))
    for row, names in alike.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        table.add_row(", ".join(names[:_NAMED]) + more, *(row[index] for index in known))
    marked = any(text.endswith(_MARK) for row in alike for text in row)
    return [table, f"{_MARK} declared by the provider, not found"] if marked else [table]


def _fact(_: str, name: str, shown: Callable[[Any], str], machine: dict[str, Any]) -> str:
    fact = machine[name]
    if fact["value"] is None:
        return ""
    return shown(fact["value"]) + (_MARK if fact["source"] == "declared" else "")


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.3g} GiB"


def _devices(devices: list[dict[str, Any]]) -> str:
    counts = Counter((device["name"], device["memory_bytes"]) for device in devices)
    return ", ".join(f"{n} x {name}, {_gib(size)}" for (name, size), n in counts.items()) or "none"


_MARK = "*"
_MACHINE: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("instance type", "instance_type", str),
    ("speed", "relative_speed", "{:g}".format),
    ("cores", "cores", "{:g}".format),
    ("memory", "memory_bytes", _gib),
    ("devices", "devices", _devices),
    ("network", "network_gbps", "{:g} Gbit/s".format),
    ("zone", "zone", str),
    ("pool", "pool", str),
    ("market", "spot", lambda spot: "spot" if spot else "on demand"),
)
"""Columns: title, fact, and how it is shown."""


def _market(status: dict[str, Any]) -> list[Table | str]:
    """Nothing where nobody names a price."""
    if all(offer["price_per_hour"] is None for offer in status["offers"]):
        return []
    table = text_table(
        "offer", "instance type", "pool", "market", "running", "price an hour", whole="offer"
    )
    for offer in status["offers"]:
        price = offer["price_per_hour"]
        table.add_row(
            offer["id"],
            offer["instance_type"],
            offer["pool"],
            "spot" if offer["spot"] else "on demand",
            f"{offer['running']} of {offer['count']}",
            "" if price is None else f"{price:.4g}",
        )
    line = cost_line(status["cost_per_hour"], status["on_demand_cost_per_hour"])
    budget = status["budget_per_hour"]
    if budget is not None:
        line += f"; {budget:.4g} an hour at most"
    return [table, line, *_spares_line(status["spares"], status["spares_cost_per_hour"])]


def _spares_line(spares: list[Any], cost: float | None) -> list[str]:
    if not spares:
        return []
    count = f"{len(spares)} spare{'s' if len(spares) > 1 else ''}"
    return [f"{count} of it, {'at a cost not known' if cost is None else f'{cost:.4g} an hour'}"]


def cost_line(cost: float | None, on_demand: float | None) -> str:
    """What the nodes cost now, and what is saved against on-demand prices."""
    if cost is None:
        return "the nodes' cost is not known"
    now = f"{cost:.4g} an hour now"
    if on_demand is None:
        return f"{now}; the on-demand price of some of the nodes is not known"
    if not on_demand:
        return now
    saved = on_demand - cost
    return f"{now}, {saved:.4g} ({saved / on_demand:.0%}) saved against {on_demand:.4g} on demand"


def workload_line(workload: dict[str, Any]) -> str:
    """What is asked of a model, in words."""
    line = f"{workload['model']}: {workload['arrival_rate_rps']:.2g} requests a second"
    tokens = {"prompt": workload["input_tokens"], "output": workload["output_tokens"]}
    means = " and ".join(f"{mean:.0f} {what}" for what, mean in tokens.items() if mean)
    return f"{line} of {means} tokens" if means else line


def _generations(status: dict[str, Any]) -> str:
    generations = status["generations"]
    standing = Counter(generation["standing"] for generation in generations)
    held = [g for g in generations if g["standing"] != "parked"]
    unread = sum(generation["unread"] for generation in held)
    tokens = sum(generation["journaled"] for generation in generations)
    return (
        f"{standing['running']} running, {standing['queued']} queued ({unread} of them unread), "
        f"{standing['parked']} parked, {status['finished_generations']} finished; "
        f"{tokens} tokens journaled"
    )
