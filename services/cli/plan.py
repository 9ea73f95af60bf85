"""`shunt plan` about a mesh that runs: why it has its plan, and having another one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from services.cli.mesh_option import DEFAULT_DATA_DIR, DataDir, mesh_in
from services.cli.told import told

console = Console()


def apply_plan(
    file: Annotated[Path, typer.Argument(help="The plan, as JSON.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Hands the running mesh a plan; it is carried out while the mesh serves."""
    from services.cli.apply import apply_plan as hand_over

    number = told(lambda: asyncio.run(hand_over(mesh_in(data_dir), file)))
    console.print(f"plan {number} is carried out (see shunt status)", highlight=False)


def diff_plan(
    file: Annotated[Path, typer.Argument(help="The plan, as JSON.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Says what `apply` would change, and changes nothing."""
    from services.cli.plan_diff import diff_text, plan_diff

    diff = told(lambda: asyncio.run(plan_diff(mesh_in(data_dir), file)))
    if as_json:
        print(json.dumps(diff))
    else:
        console.print(diff_text(diff), soft_wrap=True)


def why_plan(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
    what_ifs: Annotated[
        bool, typer.Option(help="Ask placement, too, what something else would change.")
    ] = True,
) -> None:
    """Says why the mesh has the plan it has, and what would make another one."""
    from services.cli.why import explained, why_text

    why = told(lambda: asyncio.run(explained(mesh_in(data_dir), what_ifs)))
    if as_json:
        print(json.dumps(why))
    else:
        console.print(why_text(why))


def replan_now(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    budget_per_hour: Annotated[
        float | None,
        typer.Option(min=0, help="From now on: most dollars an hour of all nodes; 0: any."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Has the mesh ask for another plan at once; one that is worth its move is carried out."""
    from services.cli.replan import replanned, replanned_text

    found = told(lambda: asyncio.run(replanned(mesh_in(data_dir), budget_per_hour)))
    if as_json:
        print(json.dumps(found))
    else:
        console.print(replanned_text(found), soft_wrap=True)


OF_PLAN: Mapping[str, Callable[..., None]] = {
    "apply": apply_plan,
    "diff": diff_plan,
    "now": replan_now,
    "why": why_plan,
}
"""Below `shunt plan`, beside those that need no mesh."""
