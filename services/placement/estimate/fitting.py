"""Fits efficiencies to measured layer times: mean absolute percentage error, pattern search."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from services.common.errors import InvalidArgument, NotFound
from services.placement.estimate.calibration import Calibration, Efficiency
from services.placement.estimate.catalogue import HardwareCatalogue
from services.placement.estimate.layers import layer_times
from services.placement.estimate.model import ModelShape

COLUMNS = ("gpu", "tp", "phase", "tokens", "context", "time_ms")
MAX_ROWS = 100_000
MAX_TOKENS = 1 << 24
CONTEXT = 1024
"""Of a decode, where none is told."""
TILES = (0, 128)
STEPS = (0.3, 0.15, 0.07, 0.03, 0.01)


@dataclass(frozen=True)
class Measurement:
    """One layer's measured time; `tokens` are prompt tokens, or sequences of a decode."""

    gpu: str
    tp: int
    prefill: bool
    tokens: int
    context: int
    time_ms: float


def read_measurements(path: Path) -> list[Measurement]:
    """A CSV file with the columns gpu, tp, phase, tokens, context, time_ms; a prefill's context
    counts for nothing. Raises InvalidArgument, naming the line, and NotFound."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise NotFound(
            f"cannot read {path.name}: {error.strerror}", field="measurements"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidArgument(f"{path.name} is not CSV", field="measurements") from error
    if not rows or len(rows) > MAX_ROWS or set(COLUMNS) - set(rows[0]):
        raise InvalidArgument(
            f"needs 1 to {MAX_ROWS} rows with the columns {', '.join(COLUMNS)}",
            field="measurements",
        )
    found = []
    for number, row in enumerate(rows, 2):
        try:
            prefill = {"prefill": True, "decode": False}[row["phase"].strip()]
            one = Measurement(
                row["gpu"].strip(),
                int(row["tp"]),
                prefill,
                int(row["tokens"]),
                CONTEXT if prefill else int(row["context"] or CONTEXT),
                float(row["time_ms"]),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise InvalidArgument(
                f"line {number} is not a measurement", field="measurements"
            ) from error
        ranges = {
            "tokens": 1 <= one.tokens <= MAX_TOKENS,
            "context": 1 <= one.context <= MAX_TOKENS,
            "time_ms": 0 < one.time_ms < 1e9,
        }
        if wrong := next((name for name, fits in ranges.items() if not fits), None):
            raise InvalidArgument(f"line {number}: {wrong} is out of range", field="measurements")
        found.append(one)
    return found


def errors(
    model: ModelShape,
    measured: Sequence[Measurement],
    calibration: Calibration,
    catalogue: HardwareCatalogue,
) -> np.ndarray:
    """Relative errors [measurements], predicted over measured less one."""
    order = sorted(range(len(measured)), key=lambda i: _setting(measured[i]))
    out = np.empty(len(measured))
    for setting, group in groupby(order, key=lambda i: _setting(measured[i])):
        at = list(group)
        gpu, tp, prefill, context = setting
        times = layer_times(
            model,
            gpu,
            tp,
            prefill,
            [measured[i].tokens for i in at],
            context,
            calibration,
            catalogue,
        )
        out[at] = np.asarray(times) / [measured[i].time_ms for i in at] - 1
    return out


def _setting(one: Measurement) -> tuple[str, int, bool, int]:
    return one.gpu, one.tp, one.prefill, one.context


def fit(
    model: ModelShape,
    measured: Sequence[Measurement],
    calibration: Calibration,
    catalogue: HardwareCatalogue,
) -> Efficiency:
    """The one efficiency that serves all the measurements best, whatever their GPU types."""
    names = {one.gpu for one in measured}
    best: tuple[float, Efficiency] | None = None
    for tile in TILES:
        start = Efficiency(mfu=0.6, mbu=0.8, attention_mbu=0.6, launch_us=5.0, tile_tokens=tile)

        def loss(trial: Efficiency) -> float:
            trials = calibration.model_copy(
                update={"gpus": {**calibration.gpus, **dict.fromkeys(names, trial)}}
            )
            missed = np.abs(errors(model, measured, trials, catalogue))
            prefill = np.array([one.prefill for one in measured])
            parts = [missed[pick].mean() for pick in (prefill, ~prefill) if pick.any()]
            return float(np.mean(parts))

        found = (loss(start), start)
        for step in STEPS:
            found = _descend(loss, found, step)
        if best is None or found[0] < best[0]:
            best = found
    assert best is not None
    return best[1]


def _descend(
    loss: Callable[[Efficiency], float], found: tuple[float, Efficiency], step: float
) -> tuple[float, Efficiency]:
    """Moves one parameter at a time by `step` until nothing gets better."""
    limits = {
        "mfu": (0.02, 1.2),
        "mbu": (0.05, 1.2),
        "attention_mbu": (0.05, 1.2),
        "launch_us": (0.1, 500.0),
    }
    moved = True
    while moved:
        moved = False
        for name, (low, high) in limits.items():
            for factor in (1 + step, 1 / (1 + step)):
                value = min(high, max(low, getattr(found[1], name) * factor))
                trial = found[1].model_copy(update={name: round(value, 5)})
                got = loss(trial)
                if got < found[0] - 1e-6:
                    found, moved = (got, trial), True
    return found


def calibrated(
    model: ModelShape,
    measured: Sequence[Measurement],
    calibration: Calibration,
    catalogue: HardwareCatalogue,
) -> tuple[Calibration, list[dict[str, Any]]]:
    """A calibration with each measured GPU type fitted, and the error by type and phase."""
    fitted = calibration.model_copy(update={"name": "fitted"})
    for gpu in sorted({one.gpu for one in measured}):
        own = [one for one in measured if one.gpu == gpu]
        alone = [one for one in own if one.tp == 1] or own
        found = fit(model, alone, calibration, catalogue)
        found = found.model_copy(
            update={
                "reserve_tokens": calibration.efficiency(catalogue.gpu(gpu)).reserve_tokens,
                "source": f"{len(alone)} measurements",
            }
        )
        fitted = fitted.model_copy(update={"gpus": {**fitted.gpus, gpu: found}})
    missed = np.abs(errors(model, measured, fitted, catalogue))
    rows = []
    for gpu in sorted({one.gpu for one in measured}):
        for phase in ("prefill", "decode"):
            at = [
                i
                for i, one in enumerate(measured)
                if one.gpu == gpu and one.prefill == (phase == "prefill")
            ]
            if at:
                mape = float(missed[at].mean())
                rows.append({"gpu": gpu, "phase": phase, "count": len(at), "mape": mape})
    return fitted, rows


def write_calibration(calibration: Calibration, path: Path) -> None:
    """A file that `--calibration` takes."""
    if path.suffix not in (".yaml", ".yml"):
        raise InvalidArgument("a calibration file ends in .yaml", field="out")
    text = yaml.safe_dump(calibration.model_dump(exclude_none=True), sort_keys=False)
    try:
        path.write_text(text)
    except OSError as error:
        raise NotFound(f"cannot write {path.name}: {error.strerror}", field="out") from error
