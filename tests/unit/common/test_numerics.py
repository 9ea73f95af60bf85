from __future__ import annotations

import pytest

from services.common.numerics import arithmetic, form_one, pipeline_class
from services.common.stage_layout import parse_stages

NATIVE, VLLM = "exact-cpu-bf16-dpbf16-12ab-34cd", "exact-vllm0.32-cpu-bfloat16-tp1"


@pytest.mark.parametrize(
    ("head_class", "stages", "expected"),
    [
        (NATIVE, "0-1:tp1,2-5:tp2", NATIVE),
        (VLLM, "0-1,2-5", VLLM),
        (VLLM, "0-2,3-5", VLLM),
        (VLLM.replace("tp1", "tp2"), "0-1:tp2,2-5:tp2", VLLM.replace("tp1", "tp2")),
        (VLLM, "0-1:tp1,2-5:tp2", VLLM.replace("-tp1", "-tp1x2-tp2x4")),
        (VLLM, "0-0,1-1,2-5:tp2", VLLM.replace("-tp1", "-tp1x2-tp2x4")),
        (VLLM, "0-2:tp1,3-5:tp2", VLLM.replace("-tp1", "-tp1x3-tp2x3")),
    ],
)
def test_a_pipelines_class_tells_degrees_where_they_change_the_bits(
    head_class: str, stages: str, expected: str
) -> None:
    assert pipeline_class(head_class, parse_stages(stages)) == expected


def test_stages_of_one_arithmetic_form_one_pipeline() -> None:
    assert arithmetic(VLLM) == "exact-vllm0.32-cpu-bfloat16"
    assert form_one([VLLM, VLLM.replace("tp1", "tp4")])
    assert form_one([NATIVE, NATIVE])
    assert not form_one([NATIVE, VLLM])
    assert not form_one([VLLM, VLLM.replace("exact", "inexact")])
