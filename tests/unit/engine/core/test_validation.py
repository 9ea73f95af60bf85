from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.exchange import GenerateCall
from services.common.generation import GenerationRequest, ModelRef, Sampling, TokenSpan
from services.engine.core.validation import Bounds

BOUNDS = Bounds(ModelRef("m", "d"), vocab_size=100, max_positions=64)
CALL = GenerateCall(
    GenerationRequest("g", ModelRef("m", "d"), tuple(range(60)), Sampling(4)), 1, "f"
)


def test_what_just_fits_is_taken() -> None:
    BOUNDS.check(CALL)
    BOUNDS.check(replace(CALL, held=(TokenSpan(0, 0, (99,) * 4),)))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt_ids": (100,)}, "prompt_ids"),
        ({"prompt_ids": (-1,)}, "prompt_ids"),
        ({"sampling": Sampling(5)}, "max_tokens"),
        ({"sampling": Sampling(4, logit_bias={100: 1.0})}, "logit_bias"),
        ({"sampling": Sampling(4, stop_token_ids=(100,))}, "stop_token_ids"),
        ({"sampling": Sampling(4, eos_token_ids=(100,))}, "eos_token_ids"),
        ({"sampling": Sampling(4, allowed_token_ids=(100,))}, "allowed_token_ids"),
    ],
)
def test_what_can_never_run_names_its_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        BOUNDS.check(replace(CALL, request=replace(CALL.request, **change)))  # type: ignore[arg-type]
    assert refused.value.field == field


@pytest.mark.parametrize("ids", [(100,), (1, 1, 1, 1, 1)])
@pytest.mark.group(35)
def test_held_ids_are_checked_too(ids: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        BOUNDS.check(replace(CALL, held=(TokenSpan(0, 0, ids),)))
    assert refused.value.field == "held"


def test_another_model_is_refused() -> None:
    other = replace(CALL.request, model=ModelRef("m", "e"))
    with pytest.raises(FailedPrecondition):
        BOUNDS.check(replace(CALL, request=other))
