"""Fits find the efficiencies that made the measurements."""

from __future__ import annotations

import numpy as np
import pytest

from services.common.errors import InvalidArgument
from services.placement.estimate.calibration import Efficiency, load_calibration
from services.placement.estimate.catalogue import load_catalogue
from services.placement.estimate.fitting import Measurement, errors, fit, read_measurements
from services.placement.estimate.layers import layer_times
from services.placement.estimate.model import load_model

MODEL, CATALOGUE = load_model("llama-3.1-70b"), load_catalogue()


def test_a_fit_finds_what_made_the_measurements():
    truth = Efficiency(mfu=0.55, mbu=0.7, attention_mbu=0.5, launch_us=15, tile_tokens=128)
    base = load_calibration("measured")
    made = base.model_copy(update={"gpus": {"l4": truth}})
    measured = []
    for prefill, counts in ((True, (250, 1000, 3000, 6000)), (False, (1, 16, 100, 140, 300))):
        times = layer_times(MODEL, "l4", 1, prefill, counts, 1024, made, CATALOGUE)
        measured += [
            Measurement("l4", 1, prefill, n, 1024, t) for n, t in zip(counts, times, strict=True)
        ]
    found = fit(MODEL, measured, base, CATALOGUE)
    again = base.model_copy(update={"gpus": {"l4": found}})
    assert np.abs(errors(MODEL, measured, again, CATALOGUE)).mean() < 0.03
    assert found.tile_tokens == 128
    assert found.mfu == pytest.approx(0.55, rel=0.05)


def test_decode_steps_up_at_whole_tiles_of_rows():
    calibration = load_calibration("measured")
    times = layer_times(MODEL, "l4", 1, False, (256, 257), 1024, calibration, CATALOGUE)
    assert times[1] > times[0] * 1.2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\xff",
        "gpu,tp\nl4,1",
        "gpu,tp,phase,tokens,context,time_ms\nl4,1,warmup,1,1,1",
        "gpu,tp,phase,tokens,context,time_ms\nl4,1,decode,1,1,-1",
        "gpu,tp,phase,tokens,context,time_ms\nl4,1,decode,1,1,nan",
        "gpu,tp,phase,tokens,context,time_ms\nl4",
    ],
)
def test_bad_measurements_are_refused(tmp_path, text):
    path = tmp_path / "m.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidArgument):
        read_measurements(path)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("l4,1,decode,1,0,5", "line 3: context is out of range"),
        ("l4,1,decode,0,1,5", "line 3: tokens is out of range"),
        ("l4,1,prefill,1,1,nan", "line 3: time_ms is out of range"),
        ("l4,1,decode,99999999,1,5", "line 3: tokens is out of range"),
    ],
)
def test_what_is_out_of_range_is_told_with_its_line(tmp_path, row, told):
    path = tmp_path / "m.csv"
    path.write_text(f"gpu,tp,phase,tokens,context,time_ms\nl4,1,prefill,512,0,30\n{row}\n")
    with pytest.raises(InvalidArgument, match=told):
        read_measurements(path)


def test_a_prefill_needs_no_context(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("gpu,tp,phase,tokens,context,time_ms\nl4,1,prefill,512,0,30\nl4,1,decode,8,,3")
    assert [(one.prefill, one.tokens) for one in read_measurements(path)] == [
        (True, 512),
        (False, 8),
    ]
