from __future__ import annotations

from pathlib import Path

import pytest

from experiments import estimator
from experiments.experiment import Ground, Size
from services.placement.estimate.calibration import load_calibration
from services.placement.estimate.catalogue import load_catalogue
from services.placement.estimate.layers import layer_times
from services.placement.estimate.model import load_model


def test_layers_that_take_what_the_calibration_says_have_no_error(tmp_path: Path) -> None:
    model, shipped, catalogue = (
        load_model("llama-3.1-70b"),
        load_calibration("measured"),
        load_catalogue(),
    )
    for gpu in ("a100", "l4", "t4", "v100"):
        folder = tmp_path / estimator.DATA / gpu
        folder.mkdir(parents=True)
        for name, prefill, tokens in (("prompt", True, [256, 1024]), ("decode", False, [2, 64])):
            times = layer_times(model, gpu, 1, prefill, tokens, 512, shipped, catalogue)
            lines = [f"{count},{time}" for count, time in zip(tokens, times, strict=True)]
            (folder / f"{name}_bs2time.csv").write_text("\n".join(lines) + "\n")
    rows = estimator.measure(Ground(Size.TINY, data=tmp_path))
    assert set(rows) == {estimator.ALL, "a100x1", "l4x1", "t4x1", "v100x1"}
    assert rows[estimator.ALL]["decode, shipped"] == pytest.approx(0.0, abs=1e-9)
    assert rows[estimator.ALL]["prefill, shipped"] == pytest.approx(0.0, abs=1e-9)
    held_out = [cells["prefill, held out"] for cells in rows.values()]
    assert max(one for one in held_out if isinstance(one, float)) > 0.01


def test_without_measurements_there_is_no_row(tmp_path: Path) -> None:
    assert estimator.measure(Ground(Size.FULL)) == {}
    assert estimator.measure(Ground(Size.FULL, data=tmp_path)) == {}
