"""Quantised checkpoints: from files as their tools write them into the store, and through stages.

The reference is transformers over the plain weights that the quantised ones stand for. It knows no
quantisation, and rounds elsewhere: ids may differ where its own bf16 is in doubt.
"""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.generation import ModelRef
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import open_source
from tests.checkpoints import write_checkpoint
from tests.foreign_models import FOREIGN_ON_VLLM, read_config, save_model
from tests.pipelines import Pipeline
from tests.quantised_models import in_mxfp4, quantised
from tests.references import check_ids
from tests.vllm.conftest import Stored

PROMPTS = [[5 + (7 * i + 13 * n) % 300 for i in range(n)] for n in (1, 17, 61)]
OUTPUTS = 24
COMPUTED = {"awq": 0, "gptq": 0, "compressed int4": 0, "compressed int8": 1, "compressed fp8": 1}
"""Ways that a CPU computes, and whether it rounds to eight bits what it multiplies by weights."""
REFUSED = {
    "gptq of 8 bits": "gptq of 8 bits has no kernel",
    "fp8 by matrix": "needs AMX",
    "fp8 static": "needs AMX",
    "fp8 by block": "needs AMX",
}


def _stored(name: str, folder: Path, **changes: Any) -> tuple[Stored, dict[str, torch.Tensor]]:
    config, tensors, plain = quantised(name, **changes)
    with closing(open_source(write_checkpoint(folder / "source", config, tensors))) as source:
        digest = import_checkpoint(source, DirectoryBackend(folder / "store"), "m").digest
    return Stored(config, tensors, ModelRef("m", digest), folder / "store"), plain


def _reference(config: dict[str, Any], plain: dict[str, torch.Tensor]) -> Any:
    beside = ("architectures", "model_type", "quantization_config")
    fields = {name: value for name, value in config.items() if name not in beside}
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields))
    model.load_state_dict(plain)
    return model.eval()


@pytest.mark.parametrize("name", COMPUTED)
def test_a_quantised_model_says_what_its_weights_stand_for(name: str, tmp_path: Path) -> None:
    model, plain = _stored(name, tmp_path)
    split = Pipeline([model.stage(range(2)), model.stage(range(2, 4))])
    assert all(stage.facts.exact for stage in split.stages)
    said = [split.generate(prompt, OUTPUTS) for prompt in PROMPTS]
    assert len({tuple(ids) for ids in said}) == len(PROMPTS)

    whole = Pipeline([model.stage()])
    assert [whole.generate(prompt, OUTPUTS) for prompt in PROMPTS] == said
    chance = random.Random(5)
    for cut in sorted(chance.sample(range(1, OUTPUTS), 5)):
        prompt, ids = chance.choice(list(zip(PROMPTS[1:], said[1:], strict=True)))
        chunks = (chance.randint(1, len(prompt)),)
        assert split.generate(prompt, OUTPUTS, ids[:cut], chunks=chunks) == ids
    for stage in model.stages:
        stage.close()

    reference = _reference(model.config, plain)
    for prompt, ids in zip(PROMPTS, said, strict=True):
        check_ids(reference, prompt, ids, doubt=4 if COMPUTED[name] else 1)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_kernel_on_this_device_is_refused_with_its_reason(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    model, _ = _stored(name, tmp_path, num_hidden_layers=1)
    with pytest.raises(FailedPrecondition, match=REFUSED[name]) as refused:
        model.stage()
    assert refused.value.field == "quantization_config"


def test_experts_in_mxfp4_are_stored_and_refused_on_a_cpu_without_amx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    plain = save_model("gpt_oss", tmp_path / "plain", **FOREIGN_ON_VLLM["gpt_oss"])
    config = read_config(tmp_path / "plain") | {"quantization_config": {"quant_method": "mxfp4"}}
    tensors = in_mxfp4(plain)
    assert tensors["model.layers.0.mlp.experts.down_proj_blocks"].shape == (4, 128, 3, 16)
    with closing(open_source(write_checkpoint(tmp_path / "source", config, tensors))) as source:
        digest = import_checkpoint(source, DirectoryBackend(tmp_path / "store"), "m").digest
    model = Stored(config, tensors, ModelRef("m", digest), tmp_path / "store")
    with pytest.raises(FailedPrecondition, match="experts in mxfp4 need AMX") as refused:
        model.stage()
    assert refused.value.field == "quantization_config"
    scale = "model.layers.1.mlp.experts.gate_up_proj_scales"
    del tensors[scale]
    with (
        closing(open_source(write_checkpoint(tmp_path / "less", config, tensors))) as source,
        pytest.raises(InvalidArgument) as lacking,
    ):
        import_checkpoint(source, DirectoryBackend(tmp_path / "store"), "n")
    assert lacking.value.field == scale


@pytest.mark.parametrize("name", ["awq", "gptq", "compressed int4"])
def test_four_bits_are_refused_in_fp32_by_name(name: str, tmp_path: Path) -> None:
    model, _ = _stored(name, tmp_path, num_hidden_layers=1)
    with pytest.raises(FailedPrecondition, match=r"not (on a CPU )?in fp32"):
        model.stage(dtype="fp32")


def test_a_group_in_the_order_of_activations_is_not_stored(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as refused:
        _stored("gptq by activation", tmp_path)
    assert refused.value.field == "quantization_config.desc_act"


def test_what_fails_at_its_first_step_is_refused_when_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some kernels say only then what they are not made for."""
    model, _ = _stored("compressed int4", tmp_path, num_hidden_layers=1)
    monkeypatch.setattr("services.model.vllm_quantisation.check_place", lambda *_: None)
    with pytest.raises(InvalidArgument, match=r"vLLM .* cannot run this model: .*cpu_gemm_wna16"):
        model.stage(dtype="fp32")
