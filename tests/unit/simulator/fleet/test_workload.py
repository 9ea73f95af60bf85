from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from services.common.errors import InvalidArgument
from simulator.fleet.workload import Generator, Request, read_trace


def written(directory: Path, text: str) -> Path:
    path = directory / "trace.csv"
    path.write_text(text)
    return path


def test_a_trace_is_read_scaled_and_cut_off(tmp_path: Path) -> None:
    path = written(tmp_path, "arrival_s,input,output,prefix\n0,10,5,0\n1.5,20,6,4\n9,1,1,0\n")
    assert read_trace(path, limit=2, scale=2.0) == (Request(0, 10, 5), Request(3.0, 20, 6, 4))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("arrival_s,input,output\n5,1,1\n4,1,1\n", "trace.csv:3: arrival_s: 4 goes backwards"),
        ("arrival_s,input,output\n", "trace.csv:2: arrival_s: no request"),
        ("when,input,output\n1,1,1\n", "trace.csv:1: header: "),
        ("arrival_s,input,output\n1,0,1\n", "trace.csv:2: input: 0 is not within 1 to "),
        ("arrival_s,input,output\n1,1,many\n", "trace.csv:2: output: many is no number"),
        ("arrival_s,input,output\n-1,1,1\n", "trace.csv:2: arrival_s: -1 is not within 0 to "),
        ("arrival_s,input,output\n1,1\n", "trace.csv:2: output: 2 fields, not 3"),
        ("arrival_s,input,output,prefix\n1,5,1,6\n", "trace.csv:2: prefix: is longer"),
        ("arrival_s,input,output\nnan,1,1\n", "trace.csv:2: arrival_s: nan is no number"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_field(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        read_trace(written(tmp_path, text))
    assert raised.value.message.startswith(told)


def test_what_is_drawn_looks_like_what_it_was_fitted_to() -> None:
    drawn = Generator(20_000, 4.0, 760.0, 230.0, 0.8, 0.6).draw(Random(1))
    fitted = Generator.fitted_to(drawn)
    assert fitted.rate_rps == pytest.approx(4.0, rel=0.03)
    assert (fitted.input_mean, fitted.output_mean) == pytest.approx((760.0, 230.0), rel=0.03)
    assert (fitted.input_cv, fitted.output_cv) == pytest.approx((0.8, 0.6), rel=0.06)
    assert [one.arrival_s for one in drawn] == sorted(one.arrival_s for one in drawn)
