"""How far the estimator is off measured layers, by GPU type, and with that type left out."""

from __future__ import annotations

from pathlib import Path

from bench.placement import calibration
from experiments.experiment import Experiment, Ground
from experiments.table import Column, Rows

FOLDER = Path(__file__).parent
DATA = "helix-profiles/llama2_70b"
COLUMNS = (
    Column("decode, shipped", ".1%"),
    Column("decode, held out", ".1%"),
    Column("prefill, shipped", ".1%"),
    Column("prefill, held out", ".1%"),
)
ALL = "all types"


def measure(ground: Ground) -> Rows:
    """By GPU type and TP degree; none where the measurements are not there."""
    if ground.data is None or ground.public(DATA) is None:
        return {}
    found = calibration(ground.data)
    settings = [name.removeprefix("decode ") for name in found["shipped"] if "decode " in name]
    return {
        row: {
            f"{phase}, {how}": found[part][f"{phase}{suffix}"]
            for phase in ("decode", "prefill")
            for how, part in (("shipped", "shipped"), ("held out", "left_out"))
        }
        for row, suffix in [(ALL, ""), *((one, f" {one}") for one in settings)]
    }


EXPERIMENT = Experiment(
    FOLDER.name,
    "The estimator's mean error on measured layers of 70B, by GPU type",
    COLUMNS,
    measure,
    "decode, held out",
)
