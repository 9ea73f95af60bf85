"""Figures of simulated runs, by matplotlib (the extra `experiments`)."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from simulator.fleet.result import Outcome, e2e_s, quantile, ttft_s

WINDOWS = 60
"""Of the horizon, of each of which percentiles are drawn."""


def _figure(rows: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.2 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)
    return figure, [row[0] for row in axes]


def _png(figure: Any) -> bytes:
    target = BytesIO()
    figure.savefig(target, format="png", dpi=110, metadata={"Software": None})
    return target.getvalue()


def over_time(outcome: Outcome) -> bytes:
    """Nodes by offer as bands, pipelines, what is under way, and latencies; a PNG."""
    figure, (nodes, requests, waits) = _figure(3)
    samples = outcome.samples
    times = [one.at_s / 60 for one in samples]
    offers = sorted({name for one in samples for name in one.nodes})
    bands = [[one.nodes.get(name, 0) for one in samples] for name in offers]
    nodes.stackplot(times, bands, labels=offers, step="post", alpha=0.7)
    nodes.step(
        times, [one.pipelines for one in samples], where="post", color="black", label="pipelines"
    )
    nodes.set_ylabel("nodes")
    nodes.legend(loc="upper right", fontsize="small")
    requests.plot(times, [one.running for one in samples], label="in a batch")
    requests.plot(times, [one.waiting for one in samples], label="waiting")
    requests.set_ylabel("generations")
    requests.legend(loc="upper right", fontsize="small")
    for name, share, style in (("P50", 0.5, "-"), ("P99", 0.99, ":")):
        ends = _windows(outcome, share)
        if ends:
            minutes = [at for at, _, _ in ends]
            waits.plot(minutes, [t for _, t, _ in ends], f"C0{style}", label=f"TTFT {name}")
            waits.plot(minutes, [e for _, _, e in ends], f"C1{style}", label=f"end to end {name}")
    waits.set_yscale("symlog", linthresh=1.0)
    waits.set_ylabel("seconds")
    waits.set_xlabel("minutes")
    waits.legend(loc="upper right", fontsize="small")
    for axes in (nodes, requests, waits):
        for one in outcome.interruptions:
            axes.axvline(one.at_s / 60, color="red", linewidth=0.8)
    figure.suptitle(f"{outcome.scenario}: {outcome.strategy}, seed {outcome.seed}")
    return _png(figure)


def _windows(outcome: Outcome, share: float) -> list[tuple[float, float, float]]:
    """By the time at which generations ended: minute, TTFT and end to end."""
    if not outcome.done:
        return []
    began_s = min(one.arrival_s for one in outcome.done)
    length_s = outcome.horizon_s / WINDOWS
    groups: dict[int, list[tuple[float, float]]] = {}
    for one in outcome.done:
        window = int((one.last_s - began_s) / length_s)
        groups.setdefault(window, []).append((ttft_s(one), e2e_s(one)))
    return [
        (
            (window + 0.5) * length_s / 60,
            quantile(sorted(first for first, _ in group), share),
            quantile(sorted(whole for _, whole in group), share),
        )
        for window, group in sorted(groups.items())
    ]


def side_by_side(outcomes: Sequence[Outcome]) -> bytes:
    """Requests finished over time, and dollars, of every run; a PNG."""
    figure, (finished, cost) = _figure(2)
    for one in outcomes:
        times = [sample.at_s / 60 for sample in one.samples]
        label = f"{one.scenario} {one.strategy} {one.seed}"
        finished.plot(times, [sample.finished for sample in one.samples], label=label)
        paid = one.samples[0].cost
        cost.plot(times, [sample.cost - paid for sample in one.samples], label=label)
    finished.set_ylabel("requests finished")
    cost.set_ylabel("dollars")
    cost.set_xlabel("minutes")
    if len(outcomes) <= 12:
        finished.legend(loc="upper left", fontsize="small")
    return _png(figure)
