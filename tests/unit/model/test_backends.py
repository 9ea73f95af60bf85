"""Which backend serves a model, and why another does not."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from services.common.errors import FailedPrecondition, InvalidArgument
from services.model.backends import backends_of, check_served
from services.model.outline import outline_of
from services.model.vllm_models import ARCHITECTURES, BY_TRANSFORMERS, STATEFUL, UNDIVIDED
from tests.checkpoints import make_config
from tests.foreign_models import FOREIGN, QUANTISED, quantised_config

MIXTRAL = transformers.MixtralConfig(architectures=["MixtralForCausalLM"]).to_dict()
OWN_CONFIGS = {"chatglm", "step3_text"}
"""Model types whose configuration classes vLLM itself has."""


def test_a_model_of_a_native_family_is_served_by_both() -> None:
    found = backends_of(make_config())
    assert found.names == ("native", "vllm")
    assert found.reasons == {}


def test_a_native_family_need_not_name_its_class() -> None:
    assert backends_of(make_config(architectures=None)).names == ("native", "vllm")


def test_a_mixture_of_experts_is_vllms() -> None:
    found = backends_of(MIXTRAL)
    assert found.names == ("vllm",)
    assert "model_type" in found.reasons["native"]


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_model_is_vllms(kind: str) -> None:
    found = backends_of(quantised_config(kind))
    assert found.names == ("vllm",)
    assert "quantization_config" in found.reasons["native"]


def test_what_is_stored_whole_is_not_native() -> None:
    found = backends_of(make_config(), tiled=False)
    assert found.names == ("vllm",)
    assert "import it again" in found.reasons["native"]


def test_a_backend_that_does_not_serve_a_model_says_why_and_which_does() -> None:
    found = backends_of(MIXTRAL)
    found.check("vllm")
    with pytest.raises(FailedPrecondition) as caught:
        found.check("native")
    assert caught.value.field == "backend"
    assert caught.value.message.startswith(
        "the native backend cannot serve this model: config.json"
    )
    assert caught.value.message.endswith("; vllm can")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"architectures": None}, "architectures"),
        ({"architectures": []}, "architectures"),
        ({"architectures": [7]}, "architectures"),
        ({"architectures": ["BertModel"]}, "architectures"),
        ({"architectures": ["MixtralForConditionalGeneration"]}, "architectures"),
        ({"architectures": ["MambaForCausalLM"]}, "architectures"),
        ({"architectures": ["Gemma3nForCausalLM"]}, "architectures"),
        ({"architectures": ["GPTNeoXForCausalLM"]}, "architectures"),
        ({"architectures": ["DeepseekV2ForCausalLM"]}, "architectures"),
        ({"model_type": "falcon"}, "model_type"),
        ({"model_type": ["mixtral"]}, "model_type"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_hidden_layers": 1025}, "num_hidden_layers"),
        ({"num_key_value_heads": 7}, "num_key_value_heads"),
        ({"head_dim": None, "hidden_size": 4095}, "hidden_size"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok"),
        ({"max_position_embeddings": "8k"}, "max_position_embeddings"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"n_shared_experts": -1}, "n_shared_experts"),
        ({"quantization_config": 4}, "quantization_config"),
        ({"quantization_config": {}}, "quantization_config.quant_method"),
        ({"quantization_config": {"quant_method": "bnb"}}, "quantization_config.quant_method"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config.bits"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "quantization_config.group_size",
        ),
        (
            {"quantization_config": {**QUANTISED["awq"], "version": "gemv"}},
            "quantization_config.version",
        ),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}},
            "quantization_config.weight_block_size",
        ),
    ],
)
def test_what_no_backend_serves_is_refused_by_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_served(MIXTRAL | change)
    assert caught.value.field == field
    assert caught.value.message.startswith(f"config.json: {field}: ")


def test_a_native_family_is_refused_by_its_own_field() -> None:
    """Not by what keeps it from vLLM: its config is malformed, or of another family."""
    with pytest.raises(InvalidArgument) as caught:
        check_served(make_config(hidden_act="gelu"))
    assert caught.value.field == "hidden_act"
    with pytest.raises(InvalidArgument) as caught:
        check_served(quantised_config("awq") | {"hidden_act": "gelu"})
    assert caught.value.field == "hidden_act"


def test_every_model_type_of_the_table_is_read_without_code_of_a_repository() -> None:
    assert {*ARCHITECTURES.values()} - CONFIG_MAPPING_NAMES.keys() == OWN_CONFIGS


def test_the_tables_exclude_each_other() -> None:
    tables = [{*ARCHITECTURES}, STATEFUL, UNDIVIDED, BY_TRANSFORMERS]
    assert sum(map(len, tables)) == len(set().union(*tables))


@pytest.mark.parametrize("model_type", [*FOREIGN, "gemma2", "phi3", "granite", "olmo2", "smollm3"])
def test_sizes_are_those_that_transformers_reads(model_type: str) -> None:
    config = transformers.AutoConfig.for_model(model_type, **FOREIGN.get(model_type, {}))
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]
    found, raw = outline_of(config.to_dict()), config
    assert found.layer_count == raw.num_hidden_layers
    assert found.hidden_size == raw.hidden_size
    assert found.heads == raw.num_attention_heads
    assert found.vocab_size == raw.vocab_size
    assert found.context_length == raw.max_position_embeddings
    assert found.kv_heads == getattr(raw, "num_key_value_heads", raw.num_attention_heads)
    head_dim = getattr(raw, "head_dim", None) or raw.hidden_size // raw.num_attention_heads
    assert found.head_dim == head_dim
    served = check_served(config.to_dict()).names
    assert served == ("vllm",) if model_type in FOREIGN else "native" in served


def test_keys_made_of_a_latent_row_are_kept_by_head() -> None:
    config = transformers.AutoConfig.for_model("minicpm3", architectures=["MiniCPM3ForCausalLM"])
    found = outline_of(config.to_dict())
    assert found.kv_heads == config.num_attention_heads
    assert found.head_dim == config.qk_nope_head_dim + config.qk_rope_head_dim


def test_of_experts_those_count_that_every_token_passes() -> None:
    config = transformers.Glm4MoeConfig(architectures=["Glm4MoeForCausalLM"], head_dim=128)
    found = outline_of(config.to_dict())
    assert found.experts == config.n_routed_experts
    assert found.experts_per_token == config.num_experts_per_tok + config.n_shared_experts
    assert found.intermediate_size == config.moe_intermediate_size


def test_a_vocabulary_is_padded_before_it_is_cut() -> None:
    found = outline_of(MIXTRAL | {"vocab_size": 32001})
    assert found.tensor_parallel.vocabulary == 32064
    assert found.tensor_parallel.divides(8)
    assert not outline_of(make_config(vocab_size=63)).tensor_parallel.divides(2)
