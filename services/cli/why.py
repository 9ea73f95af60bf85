"""`shunt plan why`: the reasons of the plan that is carried out, and what would make another."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import grpc
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from shuntserve.controller.v1 import controller_pb2

from services.cli.controller_calls import controller_of
from services.cli.mesh_directory import MeshDirectory, MeshError
from services.cli.mesh_status import spare_of

WHAT_IFS_S = 20.0
"""The controller gives placement less."""


async def explained(directory: MeshDirectory, what_ifs: bool) -> dict[str, Any]:
    """The JSON of `shunt plan why --json`; raises MeshError."""
    async with controller_of(directory) as stub:
        try:
            request = controller_pb2.ExplainPlanRequest(what_ifs=what_ifs)
            answer = await stub.ExplainPlan(request, timeout=WHAT_IFS_S)
        except grpc.aio.AioRpcError as error:
            raise MeshError(f"the controller has no reasons to tell: {error.details()}") from None
    return {
        "number": answer.number,
        "reasons": list(answer.reasons),
        "alternatives": [{"plan": a.plan, "lacks": a.lacks} for a in answer.alternatives],
        "causes": list(answer.causes),
        "late": answer.late or None,
        "gain": answer.gain if answer.HasField("gain") else None,
        "horizon_s": answer.horizon_s if answer.HasField("horizon_s") else None,
        "adopted_unix_s": answer.adopted_unix_s if answer.HasField("adopted_unix_s") else None,
        "what_ifs": [{"change": w.change, "answer": w.answer} for w in answer.what_ifs],
        "what_ifs_lack": answer.what_ifs_lack or None,
        "spares": [spare_of(spare) for spare in answer.spares],
    }


def age(adopted_unix_s: float) -> str:
    """In words; a clock that was set back makes no plan younger than now."""
    return f"{timedelta(seconds=int(max(0.0, time.time() - adopted_unix_s)))}"


def layers_text(stages: Iterable[Sequence[int]]) -> str:
    """Of some stages, each from its first to its last."""
    return ", ".join(f"{start}-{end - 1}" for start, end in stages)


def why_text(why: dict[str, Any]) -> Group:
    """For people."""
    since = why["adopted_unix_s"]
    title = f"plan {why['number']}" + (f", adopted {age(since)} ago" if since else "")
    parts: list[Any] = [Text(title, style="bold")]
    if why["causes"]:
        parts.append(Text(f"asked for because of: {', '.join(why['causes'])}"))
    if why["gain"] is not None:
        horizon = f" over {why['horizon_s']:g} s" if why["horizon_s"] is not None else ""
        parts.append(Text(f"beats staying by {why['gain']:.1%}{horizon}"))
    if why["late"]:
        parts.append(Text(f"late, for no plan keeps the targets: {why['late']}", style="yellow"))
    parts += [Text("why this one", style="bold"), *_lines(why["reasons"] or ["nobody said"])]
    if why["spares"]:
        head = Text("kept for the stages that are likeliest to be lost", style="bold")
        parts += [head, *_lines([_spare(spare) for spare in why["spares"]])]
    if why["alternatives"]:
        rows = [(one["plan"], one["lacks"]) for one in why["alternatives"]]
        parts.append(_table(("what else was looked at", "what it lacks"), rows))
    if why["what_ifs"]:
        rows = [(one["change"], one["answer"]) for one in why["what_ifs"]]
        parts.append(_table(("if", "the plan would be"), rows))
    if why["what_ifs_lack"]:
        parts.append(Text(f"what else would change it: {why['what_ifs_lack']}", style="yellow"))
    return Group(*parts)


def _spare(spare: dict[str, Any]) -> str:
    holds = layers_text(spare["held"])
    text = f"{spare['node']} holds " + (f"{holds} of {spare['model']}" if holds else "nothing yet")
    if spare["lacks"]:
        text += f", has no room for {layers_text(spare['lacks'])}"
    price = spare["price_per_hour"]
    return text if price is None else f"{text}, costs {price:.4g} an hour"


def _lines(texts: list[str]) -> list[Padding]:
    return [Padding(Text(text), (0, 0, 0, 2), expand=False) for text in texts]


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> Table:
    table = Table(*head)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
