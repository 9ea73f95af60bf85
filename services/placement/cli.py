"""`shunt plan`: estimates, plans, comparisons and calibrations, in this process or on a server."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound, ShuntError
from services.placement.command.clusterfile import parse_pipeline, read_cluster
from services.placement.command.report import (
    pipeline_data,
    pipeline_table,
    pipeline_title,
    plan_data,
)
from services.placement.command.words import in_words
from services.placement.estimate.calibration import load_calibration
from services.placement.estimate.catalogue import HardwareCatalogue, load_catalogue
from services.placement.estimate.cluster import Workload
from services.placement.estimate.costs import Costs
from services.placement.estimate.estimator import estimate_pipeline, estimate_plan
from services.placement.estimate.layers import layer_times
from services.placement.estimate.model import load_model
from services.placement.replan.change import Change
from services.placement.replan.next_plan import replan
from services.placement.search.problem import Objective, ObjectiveKind, Problem
from services.placement.search.registry import DEFAULT_PLANNER, NAMES, planner
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


class PhaseName(StrEnum):
    prefill = "prefill"
    decode = "decode"


def fail(error: ShuntError, **otherwise: str) -> typer.Exit:
    """Says what is wrong on stderr; exit 2 for bad input, 1 for what cannot be done."""
    typer.echo(f"error: {in_words(error, **otherwise)}", err=True)
    return typer.Exit(2 if isinstance(error, InvalidArgument | NotFound) else 1)


def costs_of(
    model: str, workload: Workload, calibration: str, catalogue: HardwareCatalogue
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
            from services.placement.estimate.explain import explain_pipeline, explanation_data

            data["explanation"] = explanation_data(explain_pipeline(costs, stages))
    except ShuntError as error:
        raise fail(error) from error
    if json_:
        show(data)
        return
    console.print(pipeline_table(pipeline_title(data), data))
    if explain:
        from services.placement.command.report import explanation_tables

        console.print(*explanation_tables(data), sep="\n")


@app.command()
def layer(
    model: ModelOption,
    gpu: Annotated[str, typer.Option(help="GPU type of the catalogue.")],
    phase: Annotated[PhaseName, typer.Option(help="Which of both: prefill, decode.")],
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
    planner_name: Annotated[
        str, typer.Option("--planner", help=f"One of {', '.join(NAMES)}.")
    ] = DEFAULT_PLANNER,
    objective: Annotated[
        ObjectiveKind, typer.Option(help="What plans are compared by.")
    ] = ObjectiveKind.THROUGHPUT,
    calibration: CalibrationOption = "measured",
    rate: RateOption = 0.0,
    budget: Annotated[float, typer.Option(help="Most dollars an hour.")] = 0.0,
    ttft: Annotated[float, typer.Option(help="Longest mean TTFT in seconds.")] = 0.0,
    tpot: Annotated[float, typer.Option(help="Longest mean TPOT in seconds.")] = 0.0,
    uniform_tp: Annotated[
        bool, typer.Option("--uniform-tp", help="One TP degree a pipeline.")
    ] = False,
    on_demand_share: Annotated[float, typer.Option(help="Least share of cost not on spot.")] = 0.0,
    recovery_s: Annotated[float, typer.Option(help="Seconds a lost pool stays away.")] = 120.0,
    phase_split: Annotated[bool, typer.Option(help="Pipelines may do one phase only.")] = False,
    seed: Annotated[int, typer.Option(help="Of planners that draw.")] = 0,
    time_limit_s: Annotated[
        float, typer.Option(min=0.01, max=3600, help="Seconds of a search.")
    ] = 60.0,
    catalogue: CatalogueOption = None,
    server: Annotated[str, typer.Option(help="host:port of a placement service.")] = "",
    plot: Annotated[Path | None, typer.Option(help="Write a picture.")] = None,
    json_: JsonOption = False,
) -> None:
    """Form pipelines from a cluster."""
    try:
        _check_plot(plot)
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
            allow_phase_split=phase_split,
        )
        workload = Workload(input_tokens, output_tokens, rate)
        if server:
            from services.placement.command.client import solve_on

            data = solve_on(
                server,
                model,
                nodes,
                workload,
                wanted,
                planner_name,
                calibration,
                seed,
                time_limit_s,
            )
        else:
            costs = costs_of(model, workload, calibration, known)
            problem = Problem(costs, nodes, wanted, seed=seed)
            data = solved(problem, planner_name, time_limit_s)
        if plot is not None:
            from services.placement.command.plot import draw

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
    if data["late"]:
        console.print(f"late, for no plan keeps the targets: {data['late']}")


def _check_plot(path: Path | None) -> None:
    if path is not None:
        from services.placement.command.plot import check_plot

        check_plot(path)


def solved(problem: Problem, name: str, time_limit_s: float) -> dict[str, Any]:
    """A planner's plan as plain data."""
    watch = Stopwatch(time_limit_s)
    solution = planner(name)(problem, watch)
    elapsed_s = watch.elapsed_s()
    total, each = estimate_plan(problem.costs, solution.pipelines)
    bound, late = solution.upper_bound_rps, solution.late
    return plan_data(name, solution.pipelines, total, each, elapsed_s, bound, late)


@app.command()
def compare(
    cluster: ClusterOption,
    model: Annotated[
        list[str], typer.Option("--model", help="Built-in name or config.json; again: more.")
    ] = ["llama-3.1-70b", "qwen3-32b"],  # noqa: B006
    input_tokens: InputOption = 763,
    output_tokens: OutputOption = 232,
    planners: Annotated[str, typer.Option(help="Comma-separated; all by default.")] = "",
    calibration: CalibrationOption = "measured",
    phase_split: Annotated[bool, typer.Option(help="Pipelines may do one phase only.")] = False,
    time_limit_s: Annotated[
        float, typer.Option(min=0.01, max=3600, help="Seconds of a search.")
    ] = 60.0,
    catalogue: CatalogueOption = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of the first model.")] = None,
    json_: JsonOption = False,
) -> None:
    """Every planner on one cluster, judged by one estimator."""
    from services.placement.command.comparison import compare_planners, comparison_table

    try:
        _check_plot(plot)
        known = load_catalogue(catalogue)
        nodes = read_cluster(cluster, known)
        names = [name for name in planners.split(",") if name] or list(NAMES)
        for name in names:
            planner(name)
        results = []
        for one in model:
            costs = costs_of(one, Workload(input_tokens, output_tokens), calibration, known)
            problem = Problem(costs, nodes, Objective(allow_phase_split=phase_split))
            results.append(compare_planners(one, problem, names, solved, time_limit_s))
        if plot is not None and results[0]["planners"]:
            from services.placement.command.plot import draw

            plans = [row["plan"] for row in results[0]["planners"] if row["plan"]]
            draw(plans[0], plot, plans[1:])
    except ShuntError as error:
        raise fail(error, planner="--planners") from error
    if json_:
        show(results)
        return
    for result in results:
        console.print(comparison_table(result))


@app.command(name="what-if")
def what_if(
    model: ModelOption,
    cluster: ClusterOption,
    lose: Annotated[str, typer.Option(help="type[:count],... taken away.")] = "",
    gain: Annotated[str, typer.Option(help="type[:count],... that come back.")] = "",
    input_tokens: InputOption = 763,
    output_tokens: OutputOption = 232,
    notice_s: Annotated[float, typer.Option(help="Seconds until the lost are gone.")] = 0.0,
    horizon_s: Annotated[float, typer.Option(help="How long the new plan lasts.")] = 600.0,
    generations: Annotated[int, typer.Option(min=0, help="In flight on each pipeline.")] = 0,
    improve: Annotated[bool, typer.Option(help="Plan the whole cluster anew too.")] = False,
    calibration: CalibrationOption = "measured",
    catalogue: CatalogueOption = None,
    json_: JsonOption = False,
) -> None:
    """The plan after nodes are lost or gained, and what it moves."""
    from services.placement.command.whatif import change_cluster, moved_data

    try:
        known = load_catalogue(catalogue)
        nodes = read_cluster(cluster, known)
        workload = Workload(input_tokens, output_tokens)
        costs = costs_of(model, workload, calibration, known)
        search = planner(DEFAULT_PLANNER)
        watch = Stopwatch(60.0)
        running = search(Problem(costs, nodes), watch).pipelines
        after = change_cluster(known, nodes, running, lose, gain)
        change = Change(
            running=running,
            resident={},
            horizon_s=horizon_s,
            notice_s=notice_s,
            generations=tuple(generations for _ in running),
            tokens_per_generation=workload.total_tokens,
            improve=improve,
        )
        began_s = watch.elapsed_s()
        found = replan(Problem(costs, after), change, search, watch)
        data = moved_data(costs, running, found, watch.elapsed_s() - began_s)
    except ShuntError as error:
        raise fail(error) from error
    if json_:
        show(data)
        return
    for one in data["pipelines"]:
        console.print(pipeline_table(pipeline_title(one), one))
    console.print(
        f"{data['throughput_before_rps']:.3f} -> {data['throughput_rps']:.3f} req/s; serves again "
        f"in {data['time_to_serve_s']:.1f} s; planned in {data['solve_time_s'] * 1e3:.0f} ms"
    )
    for move in data["node_moves"]:
        console.print(f"  {move['node']}: load {move['load_bytes'] / 1e9:.2f} GB")


@app.command()
def calibrate(
    measurements: Annotated[
        Path, typer.Argument(help="CSV: gpu, tp, phase, tokens, context, time_ms of one layer.")
    ],
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="The calibration file to write.")],
    calibration: CalibrationOption = "measured",
    catalogue: CatalogueOption = None,
    json_: JsonOption = False,
) -> None:
    """Fit the efficiencies to measurements of your own, GPU type by GPU type."""
    from services.placement.estimate.fitting import calibrated, read_measurements, write_calibration

    try:
        measured = read_measurements(measurements)
        fitted, rows = calibrated(
            load_model(model), measured, load_calibration(calibration), load_catalogue(catalogue)
        )
        write_calibration(fitted, out)
    except ShuntError as error:
        raise fail(error, measurements="MEASUREMENTS") from error
    if json_:
        show(rows)
        return
    for row in rows:
        console.print(
            f"{row['gpu']:>8} {row['phase']:>8}: error {row['mape'] * 100:.1f} % of "
            f"{row['count']} measurements"
        )


@app.command()
def prices(
    instance_types: Annotated[str, typer.Option("--types", help="Comma-separated.")],
    region: Annotated[str, typer.Option(help="Of AWS.")] = "us-east-1",
    json_: JsonOption = False,
) -> None:
    """Spot prices of EC2 now, as rows of a cluster file."""
    from datetime import UTC, datetime

    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    from services.placement.command.prices import spot_prices

    try:
        client = boto3.client("ec2", region_name=region)
        found = spot_prices(client, instance_types.split(","), datetime.now(UTC))
    except (BotoCoreError, ClientError, ValueError) as error:  # of an endpoint that is no URL
        raise fail(FailedPrecondition(f"EC2 does not answer: {error}")) from error
    rows = [
        {"type": p.instance_type, "pool": p.pool, "price_per_hour": p.price_per_hour, "spot": True}
        for p in found
    ]
    if json_:
        show(rows)
        return
    for row in rows:
        typer.echo(
            f"  - {{type: {row['type']}, count: 1, price_per_hour: {row['price_per_hour']}, "
            f"pool: {row['pool']}, spot: true}}"
        )


if __name__ == "__main__":
    app()
