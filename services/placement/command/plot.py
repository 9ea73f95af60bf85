"""A plan as a picture: pipelines as bars of layers, stage times, cost against throughput."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.common.errors import InvalidArgument, NotFound
from services.common.results import check_place

FORMATS = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Whether a picture could be written there, before what it shows is computed. Raises
    InvalidArgument and NotFound."""
    if path.suffix not in FORMATS:
        raise InvalidArgument(f"a picture ends in {', '.join(FORMATS)}", field="plot")
    try:
        check_place(path)
    except OSError as error:
        raise NotFound(f"cannot write {path}: {error.strerror}", field="plot") from error


def draw(data: dict[str, Any], path: Path, others: Sequence[dict[str, Any]] = ()) -> None:
    """Writes the picture of a plan's data; `others` are plans to compare it with. Raises as
    `check_plot` does."""
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(data["pipelines"])
    figure = Figure(figsize=(11, 4 + 0.45 * count), layout="constrained")
    FigureCanvasAgg(figure)
    bars, times, money = figure.subplots(1, 3, width_ratios=(3, 2, 1.5))
    types = sorted({s["instance_type"] for p in data["pipelines"] for s in p["stages"]})
    colours = {name: f"C{i % 10}" for i, name in enumerate(types)}
    for row, pipeline in enumerate(data["pipelines"]):
        start = 0
        for stage in pipeline["stages"]:
            bars.barh(
                row,
                stage["layers"],
                left=start,
                color=colours[stage["instance_type"]],
                edgecolor="white",
            )
            label = f"{stage['layers']}\nTP{stage['tp']}"
            bars.text(start + stage["layers"] / 2, row, label, ha="center", va="center", size=7)
            start += stage["layers"]
        place = [
            row + 0.8 * (i + 0.5) / len(pipeline["stages"]) - 0.4
            for i in range(len(pipeline["stages"]))
        ]
        height = 0.7 / len(pipeline["stages"])
        decode = [stage["decode_s"] * 1e3 for stage in pipeline["stages"]]
        shades = [colours[stage["instance_type"]] for stage in pipeline["stages"]]
        times.barh(place, decode, height=height, color=shades)
    for axes in (bars, times):
        axes.set_yticks(
            range(count), [f"{p['throughput_rps']:.2f} req/s" for p in data["pipelines"]]
        )
        axes.invert_yaxis()
    bars.set_xlabel("layers")
    bars.set_title(f"{data['planner']}: {data['throughput_rps']:.2f} req/s")
    handles = [bars.barh(0, 0, color=colour, label=name) for name, colour in colours.items()]
    bars.legend(handles=handles, loc="lower right", fontsize=7)
    times.set_xlabel("decode step of a stage, ms")
    for plan in (data, *others):
        money.scatter(plan["cost_per_hour"], plan["throughput_rps"])
        money.annotate(plan["planner"], (plan["cost_per_hour"], plan["throughput_rps"]), size=7)
    money.set_xlabel("$/h")
    money.set_ylabel("req/s")
    try:
        figure.savefig(path)
    except OSError as error:
        raise NotFound(f"cannot write {path}: {error.strerror}", field="plot") from error
