import pytest

from services.common.errors import InvalidArgument
from services.common.phases import PipelinePhase, parse_phases


def test_a_text_names_a_phase_for_each_pipeline() -> None:
    assert parse_phases("prefill,decode,both") == (
        PipelinePhase.PREFILL,
        PipelinePhase.DECODE,
        PipelinePhase.BOTH,
    )


@pytest.mark.parametrize("text", ["", "prefill,", "prefill decode", "Prefill", "whole"])
def test_what_is_no_phase_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="one a pipeline"):
        parse_phases(text)
