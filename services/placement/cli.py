"""`shunt plan`: estimates, plans, comparisons and calibrations, in this process or on a server."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound, ShuntError
from services.placement.calibration import load_calibration
from services.placement.catalogue import Catalogue, load_catalogue
from services.placement.cluster import Node, Workload
from services.placement.clusterfile import parse_pipeline, read_cluster
from services.placement.costs import Costs
from services.placement.estimator import estimate_pipeline, estimate_plan
from services.placement.layers import layer_times
from services.placement.model import load_model
from services.placement.problem import Objective, ObjectiveKind, Problem
from services.placement.registry import DEFAULT_PLANNER, planner
from services.placement.report import pipeline_data, pipeline_table, pipeline_title, plan_data
from services.placement.stopwatch import Stopwatch

app = typer.Typer(help="Plan pipelines over GPUs of several kinds.", no_args_is_help=True)
console = Console()

ModelOption = Annotated[str, typer.Option("--model", help="A built-in name or a config.json.")]
InputOption = Annotated[int, typer.Option("--input-tokens", help="Mean prompt tokens.")]
OutputOption = Annotated[int, typer.Option("--output-tokens", help="Mean output tokens.")]
CalibrationOption = Annotated[
    str, typer.Option("--calibration", help="measured, nominal, or a YAML file.")
]
RateOption = Annotated[float, typer.Option("--rate", help="Requests a second to carry.")]
ClusterOption = Annotated[Path, typer.Option("--cluster", help="YAML: instances by type.")]
CatalogueOption = Annotated[
    Path | None, typer.Option("--catalogue", help="Directory of further GPUs and types.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class PhaseName(str, Enum):
    prefill = "prefill"
    decode = "decode"


def fail(error: ShuntError) -> typer.Exit:
    """Says what is wrong on stderr; exit 2 for bad input, 1 for what cannot be done."""
    place = f"{error.field}: " if error.field else ""
    typer.echo(f"error: {place}{error.message}", err=True)
    return typer.Exit(2 if isinstance(error, InvalidArgument | NotFound) else 1)


def costs_of(
    model: str, workload: Workload, calibration: str, catalogue: Catalogue
) -> Costs:
    return Costs(load_model(model), workload, load_calibration(calibration), catalogue)


def show(data: Any) -> None:
    typer.echo(json.dumps(data))


@app.command()
def estimate(
    model: ModelOption,
    pipeline: Annotated[str, typer.Option(help="type:layers[:tp],... head first.")],
    input_tokens: InputOption = 763,
    output_tokens: OutputOption = 232,
    calibration: CalibrationOption = "measured",
    rate: RateOption = 0.0,
    catalogue: CatalogueOption = None,
    explain: Annotated[bool, typer.Option("--explain", help="Where the time goes.")] = False,
    json_: JsonOption = False,
) -> None:
    """Times, batch and cost of one pipeline."""
    try:
        known = load_catalogue(catalogue)
        costs = costs_of(model, Workload(input_tokens, output_tokens, rate), calibration, known)
        stages = parse_pipeline(pipeline, known)
        data = pipeline_data(stages, estimate_pipeline(costs, stages, rate))
        if explain:
            from services.placement.explain import explain_pipeline, explanation_data

            data["explanation"] = explanation_data(explain_pipeline(costs, stages))
    except ShuntError as error:
        raise fail(error) from error
    if json_:
        show(data)
        return
    console.print(pipeline_table(pipeline_title(data), data))
    if explain:
        from services.placement.report import explanation_tables

        console.print(*explanation_tables(data), sep="\n")


@app.command()
def layer(
    model: ModelOption,
    gpu: Annotated[str, typer.Option(help="GPU type of the catalogue.")],
    phase: Annotated[PhaseName, typer.Option()],
    tokens: Annotated[str, typer.Option(help="Tokens of a prefill, or sequences of a decode.")],
    tp: Annotated[int, typer.Option(help="GPUs that share the layer.")] = 1,
    context: Annotated[int, typer.Option(help="Tokens behind each decoded one.")] = 1024,
    calibration: CalibrationOption = "measured",
    catalogue: CatalogueOption = None,
    json_: JsonOption = False,
) -> None:
    """Time of one layer."""
    try:
        counts = [_count(part) for part in tokens.split(",")]
        times = layer_times(
            load_model(model),
            gpu,
            tp,
            phase is PhaseName.prefill,
            counts,
            context,
            load_calibration(calibration),
            load_catalogue(catalogue),
        )
    except ShuntError as error:
        raise fail(error) from error
    rows = [{"tokens": n, "time_ms": ms} for n, ms in zip(counts, times, strict=True)]
    if json_:
        show(rows)
        return
    for row in rows:
        console.print(f"{row['tokens']:>8} tokens  {row['time_ms']:.4f} ms")


def _count(text: str) -> int:
    if not text.strip().isdecimal() or not 1 <= int(text.strip()[:12]) <= 1 << 24:
        raise InvalidArgument(f"tokens are integers from 1 to {1 << 24}", field="tokens")
    return int(text)


@app.command()
def solve(
    model: ModelOption,
    cluster: ClusterOption,
    input_tokens: InputOption = 763,
    output_tokens: OutputOption = 232,
    planner_name: Annotated[str, typer.Option("--planner")] = DEFAULT_PLANNER,
    objective: Annotated[ObjectiveKind, typer.Option()] = ObjectiveKind.THROUGHPUT,
    calibration: CalibrationOption = "measured",
    rate: RateOption = 0.0,
    budget: Annotated[float, typer.Option(help="Most dollars an hour.")] = 0.0,
    ttft: Annotated[float, typer.Option(help="Longest mean TTFT in seconds.")] = 0.0,
    tpot: Annotated[float, typer.Option(help="Longest mean TPOT in seconds.")] = 0.0,
    uniform_tp: Annotated[bool, typer.Option("--uniform-tp")] = False,
    on_demand_share: Annotated[float, typer.Option(help="Least share of cost not on spot.")] = 0.0,
    recovery_s: Annotated[float, typer.Option(help="Seconds a lost pool stays away.")] = 120.0,
    seed: Annotated[int, typer.Option()] = 0,
    time_limit_s: Annotated[float, typer.Option(min=0.01, max=3600)] = 60.0,
    catalogue: CatalogueOption = None,
    server: Annotated[str, typer.Option(help="host:port of a placement service.")] = "",
    plot: Annotated[Path | None, typer.Option(help="Write a picture.")] = None,
    json_: JsonOption = False,
) -> None:
    """Form pipelines from a cluster."""
    try:
        known = load_catalogue(catalogue)
        nodes = read_cluster(cluster, known)
        wanted = Objective(
            kind=objective,
            budget_per_hour=budget,
            ttft_target_s=ttft,
            tpot_target_s=tpot,
            uniform_tp=uniform_tp,
            min_on_demand_share=on_demand_share,
            recovery_s=recovery_s,
        )
        workload = Workload(input_tokens, output_tokens, rate)
        if server:
            from services.placement.client import solve_on

            data = solve_on(
                server, model, nodes, workload, wanted, planner_name, calibration, seed,
                time_limit_s,
            )
        else:
            costs = costs_of(model, workload, calibration, known)
            problem = Problem(costs, nodes, wanted, seed=seed)
            data = solved(problem, planner_name, time_limit_s)
        if plot is not None:
            from services.placement.plot import draw

            draw(data, plot)
    except ShuntError as error:
        raise fail(error) from error
    if json_:
        show(data)
        return
    for one in data["pipelines"]:
        console.print(pipeline_table(pipeline_title(one), one))
    console.print(
        f"{data['planner']}: {data['throughput_rps']:.3f} req/s at ${data['cost_per_hour']:.3f}/h "
        f"in {data['solve_time_s']:.2f} s"
    )


def solved(problem: Problem, name: str, time_limit_s: float) -> dict[str, Any]:
    """A planner's plan as plain data."""
    watch = Stopwatch(time_limit_s)
    solution = planner(name)(problem, watch)
    elapsed_s = watch.elapsed_s()
    total, each = estimate_plan(problem.costs, solution.pipelines)
    return plan_data(
        name, solution.pipelines, total, each, elapsed_s, solution.upper_bound_rps
    )


if __name__ == "__main__":
    app()
