"""Which quantised weights vLLM computes, and where it does not."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import FailedPrecondition, InvalidArgument
from services.model.backends import backends_of, check_served
from services.model.vllm_quantisation import Device, check_place
from tests.checkpoints import make_config

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}


def _compressed(form: str, bits: int) -> dict[str, Any]:
    group = {"weights": {"num_bits": bits}}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
    }


def _config(how: dict[str, Any]) -> dict[str, Any]:
    return make_config(quantization_config=how)


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({**AWQ, "zero_point": None}, "zero_point"),
        ({**GPTQ, "bits": 3}, "bits"),
        ({**GPTQ, "sym": False}, "sym"),
        ({**GPTQ, "sym": "yes"}, "sym"),
        ({**GPTQ, "desc_act": True}, "desc_act"),
        ({**GPTQ, "desc_act": None}, "desc_act"),
        ({**AWQ, "quant_method": "aqlm"}, "quant_method"),
    ],
)
def test_what_vllm_computes_nowhere_is_refused_by_field(how: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_served(_config(how))
    assert refused.value.field == f"quantization_config.{field}"


def test_an_order_of_activations_within_one_group_is_none() -> None:
    assert check_served(_config({**GPTQ, "desc_act": True, "group_size": -1})).names == ("vllm",)


PLACES: tuple[tuple[Device, str], ...] = (
    ("CPU without AMX", "bf16"),
    ("CPU", "bf16"),
    ("CPU", "fp32"),
    ("GPU", "bf16"),
    ("GPU", "fp32"),
)


@pytest.mark.parametrize(
    ("how", "computed"),
    [
        (None, "yes yes yes yes yes"),
        (AWQ, "yes yes no yes no"),
        (GPTQ, "yes yes no yes no"),
        ({**GPTQ, "bits": 8}, "no no no yes no"),
        (FP8, "no yes no yes no"),
        ({"quant_method": "mxfp4"}, "no yes no yes no"),
        (_compressed("pack-quantized", 4), "yes yes no yes yes"),
        (_compressed("pack-quantized", 8), "no no no yes yes"),
        (_compressed("int-quantized", 8), "yes yes yes yes yes"),
        (_compressed("float-quantized", 8), "yes yes yes yes yes"),
    ],
)
def test_where_a_way_is_computed(how: dict[str, Any] | None, computed: str) -> None:
    config = _config(how) if how else make_config()
    for (device, dtype), wanted in zip(PLACES, computed.split(), strict=True):
        if wanted == "yes":
            check_place(config, device, dtype)
            continue
        with pytest.raises(FailedPrecondition) as refused:
            check_place(config, device, dtype)
        assert refused.value.field == "quantization_config"


def test_a_model_is_shown_with_what_is_known_of_places() -> None:
    assert backends_of(_config({**GPTQ, "bits": 8})).limits == {
        "vllm": (
            "not in fp32: gptq is computed in bf16",
            "not on a CPU: gptq of 8 bits has no kernel there",
        )
    }
    assert backends_of(make_config()).limits == {"native": (), "vllm": ()}
    gemma = {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "hidden_size": 2304,
        "head_dim": 256,
    }
    (limit,) = backends_of(gemma).limits["native"]
    assert limit.startswith("not on a GPU: attn_logit_softcapping")
