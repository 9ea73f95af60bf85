"""Whatever a config says, it is served as transformers would, or refused at import by field.

A mutant's weights are those that transformers makes for it, where it makes a model of it. No third
outcome: an import that succeeds and a stage that does not load, or that computes something else.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from shuntserve.tensorstore.v1 import tensorstore_pb2
from torch import Tensor

from services.common.errors import InvalidArgument
from services.common.generation import LayerRange, ModelRef
from services.controller.model_store import facts_from
from services.engine.native.model import load_stage
from services.engine.stage.spans import Span
from services.model.config import parse_config
from services.router.grammar_checks import GrammarChecks
from services.router.model import ServedModel
from services.router.model_files import ModelFiles
from services.tensorstore.client import open_store
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import open_source
from tests.checkpoints import write_checkpoint
from tests.config_mutants import BASES, mutant
from tests.tiny_model import model_files, tiny_tokenizer

transformers = pytest.importorskip("transformers")
MUTANTS = 520
LEAST_SERVED = 0.4
IDS = [(37 * i * i + 11 * i) % 61 for i in range(40)]
MOST_LAYERS = 64
MOST_NUMBERS = 1 << 20
"""Models with more are not made: an import knows that the weights are not theirs."""


@dataclass(frozen=True)
class Reference:
    """A model as transformers makes it."""

    tensors: dict[str, Tensor]
    logits: Tensor


def reference_of(raw: dict[str, Any]) -> Reference | None:
    """None where transformers makes no model of the config, or one too large to try."""
    if raw.get("quantization_config") is not None:
        return None  # not made from a config alone
    if type(layers := raw.get("num_hidden_layers")) is int and layers > MOST_LAYERS:
        return None  # it would write a list of them
    raw = json.loads(json.dumps(raw))
    try:
        config = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
        if _numbers(config) > MOST_NUMBERS:
            return None
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        generator = torch.Generator().manual_seed(5)
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = (1 + 0.2 * noise) if "norm" in name else 0.15 * noise
        ids = [token % config.vocab_size for token in IDS[: config.max_position_embeddings]]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0]
    except Exception:  # whatever it raises, it does not load
        return None
    tied = config.tie_word_embeddings
    tensors = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    return Reference(tensors, logits)


def _numbers(config: Any) -> int:
    """About how many numbers a model has, the heads' not counted."""
    layer = config.hidden_size * (config.intermediate_size + config.num_attention_heads)
    return config.vocab_size * config.hidden_size + config.num_hidden_layers * layer


def served_logits(store: Path) -> Tensor:
    """What a stage of all layers computes from a stored model, as an engine loads it."""
    stored = open_store(str(store)).model("mutant")
    config = parse_config(stored.config)
    with stored.stage(LayerRange(0, config.layer_count)) as weights:
        stage = load_stage(
            config,
            weights.tensors,
            range(config.layer_count),
            dtype="fp32",
            kv_blocks=4,
            self_test=False,
        )
    ids = [token % config.vocab_size for token in IDS[: config.context_length]]
    hidden = stage._embed(ids)
    arithmetic = stage._arithmetic
    assert arithmetic is not None
    logits = arithmetic.logits(arithmetic.forward(hidden, [Span(0, len(ids), 0, range(4))]))
    stage.close()
    return logits


def refusal_of(source: Path, backend: DirectoryBackend) -> InvalidArgument | None:
    """Why an import refuses a directory; None where it stores it."""
    try:
        with contextlib.closing(open_source(source)) as checkpoint:
            import_checkpoint(checkpoint, backend, "mutant")
    except InvalidArgument as error:
        return error
    return None


@pytest.fixture(scope="module")
def base_tensors() -> dict[str, Tensor]:
    """Weights for mutants of which transformers makes no model."""
    found = reference_of(BASES["llama"])
    assert found is not None
    return found.tensors


@pytest.fixture(autouse=True)
def quick_and_quiet(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Without the fingerprint of each stage's arithmetic, which no config changes."""
    monkeypatch.setattr("services.engine.native.model.fingerprint", lambda *_: "")
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(600)
def test_a_mutant_is_served_as_transformers_would_or_refused_by_field(
    tmp_path: Path, base_tensors: dict[str, Tensor]
) -> None:
    refusals: collections.Counter[str] = collections.Counter()
    served, loaded, wrong = 0, 0, []
    for seed in range(MUTANTS):
        raw = mutant(seed)
        reference = reference_of(raw)
        loaded += reference is not None
        source, store = tmp_path / f"source-{seed}", tmp_path / f"store-{seed}"
        write_checkpoint(source, raw, reference.tensors if reference else base_tensors)
        backend = DirectoryBackend(store)
        refused = refusal_of(source, backend)
        if refused is not None:
            assert refused.field
            assert "config.json" in refused.message
            assert list(backend.objects()) == []
            refusals[refused.field if reference else f"{refused.field}, as by transformers"] += 1
            continue
        if reference is None:
            wrong.append((seed, "served, though transformers makes no model of it"))
            continue
        served += 1
        expected = reference.logits
        found = served_logits(store)[: len(expected)]
        if not torch.allclose(found, expected[: len(found)], rtol=1e-3, atol=2e-4):
            wrong.append((seed, f"differs by {(found - expected).abs().max():.2g}"))
    print(f"{loaded} of {MUTANTS} load in transformers, {served} are served")
    for field, count in refusals.most_common():
        print(f"{count:5} refused by {field}")
    assert wrong == []
    assert served >= LEAST_SERVED * loaded


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("change", ["missing", "foreign", "bias", "transposed", "scales"])
def test_tensors_that_are_not_the_configs_are_refused_by_name(
    tmp_path: Path, model_type: str, change: str
) -> None:
    reference = reference_of(BASES[model_type])
    assert reference is not None
    tensors = dict(reference.tensors)
    name = "model.layers.1.self_attn.o_proj.weight"
    match change:
        case "missing":
            del tensors[name]
        case "foreign":
            name = "model.layers.3.self_attn.o_proj.weight"
            tensors[name] = torch.zeros(48, 48)
        case "bias":
            name = "model.layers.1.self_attn.o_proj.bias"
            tensors[name] = torch.zeros(48)
        case "transposed":
            name = "model.layers.1.mlp.down_proj.weight"
            tensors[name] = tensors[name].t().contiguous()
        case "scales":
            name = "model.layers.1.self_attn.o_proj.weight_scale"
            tensors[name] = torch.ones(1)
    write_checkpoint(tmp_path / "source", BASES[model_type], tensors)
    backend = DirectoryBackend(tmp_path / "store")
    refused = refusal_of(tmp_path / "source", backend)
    assert refused is not None
    assert refused.field == name
    assert list(backend.objects()) == []


def test_one_limit_of_a_windowed_model_is_told_to_everybody(tmp_path: Path) -> None:
    """A window shortens no context: engine, controller and router count the same positions."""
    raw = {**BASES["mistral"], "vocab_size": 320}
    reference = reference_of(raw)
    assert reference is not None
    write_checkpoint(tmp_path / "source", raw, reference.tensors)
    assert refusal_of(tmp_path / "source", DirectoryBackend(tmp_path / "store")) is None
    stored = open_store(str(tmp_path / "store")).model("mutant")
    config = parse_config(stored.config)
    with stored.stage(LayerRange(0, config.layer_count)) as weights:
        stage = load_stage(config, weights.tensors, range(config.layer_count), kv_blocks=64)
    reply = tensorstore_pb2.DescribeResponse(
        manifest=json.dumps({"config": dict(stored.config)}).encode()
    )
    files = ModelFiles(ModelRef("m", "d"), dict(stored.config), model_files(tiny_tokenizer()))
    assert raw["sliding_window"] < raw["max_position_embeddings"]
    assert {
        stage.facts.context_length,
        facts_from(reply).context_length,
        ServedModel(files, GrammarChecks()).facts.max_positions,
    } == {raw["max_position_embeddings"]}
    stage.close()
