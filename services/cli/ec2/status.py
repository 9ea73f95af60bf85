"""`shunt ec2 status`: the stack, its machines and what they cost, and whether the mesh answers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from services.cli.ec2.gateway import controller_told, waits_for
from services.cli.ec2.home import Home
from services.cli.ec2.spend import spend_of, table_of
from services.cli.ec2.standing import standing_of
from services.cli.status_table import status_table
from services.cli.tables import text_table


def ec2_status(home: Home) -> dict[str, Any]:
    """For scripts; what nobody knows is null. Raises MeshError."""
    view = home.stack.view()
    nodes, hosts = home.machines.nodes(), home.machines.hosts()
    spend = spend_of(home.account, table_of(home.parameters), nodes)
    routers = sum(host.role == "router" for host in hosts)
    standing = standing_of(view.parameters, routers).per_hour if view.parameters else None
    url = view.outputs.get("GatewayUrl")
    complaint = waits_for(url) if url else None
    address = view.outputs.get("OperatorAddress", "")
    told = controller_told(address, home.keyring.operator)
    return {
        "mesh": home.mesh,
        "account": home.account.number,
        "region": home.account.region,
        "stack": {"status": view.status or None, "outputs": dict(view.outputs)},
        "gateway": {
            "url": url,
            "ready": bool(url) and complaint is None,
            "reason": None if complaint is None else complaint.reason,
        },
        "nodes": [asdict(node) for node in nodes],
        "hosts": [asdict(host) for host in hosts],
        "volumes": [asdict(volume) for volume in home.machines.volumes()],
        "cost_per_hour": {
            "nodes": spend.per_hour,
            "nodes_on_demand": spend.on_demand_per_hour,
            "nodes_not_known": spend.unknown,
            "standing": standing,
        },
        "controller": None if told is None else told.status,
    }


def ec2_status_table(found: dict[str, Any]) -> Group:
    """For people."""
    status = found["stack"]["status"] or "not there"
    head = f"mesh {found['mesh']} in {found['region']}, account {found['account']}"
    lines: list[RenderableType] = [Text(head), Text(f"stack: {status}")]
    gateway = found["gateway"]
    if gateway["url"]:
        state = "ready" if gateway["ready"] else f"not ready: {gateway['reason']}"
        lines.append(Text(f"gateway {gateway['url']}: {state}"))
    machines = text_table(
        "instance", "machine", "state", "type", "zone", "market", whole="instance"
    )
    for one in (*found["hosts"], *found["nodes"]):
        market = "spot" if one["is_spot"] else "on demand"
        machines.add_row(
            *(one["instance_id"], one["name"] or one["role"], one["state"]),
            *(one["instance_type"], one["zone"], market),
        )
    told = found["controller"]
    inside = [] if told is None else [status_table({"services": [], **told})]
    return Group(*lines, machines, Text(_cost(found["cost_per_hour"])), *inside)


def _cost(cost: dict[str, Any]) -> str:
    line = f"nodes: {cost['nodes']:.4g} dollars an hour now"
    if cost["nodes_on_demand"]:
        line += f", {cost['nodes_on_demand']:.4g} on demand"
    if cost["nodes_not_known"]:
        line += f"; of {cost['nodes_not_known']} nodes the price is not known"
    if cost["standing"] is not None:
        line += f"; what stands beside them: {cost['standing']:.4g}"
    return line
