"""Every family that vLLM computes says what transformers says, on the way that a model goes: saved,
imported, stored, loaded as two stages."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from services.common.errors import FailedPrecondition
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import StageSpec
from services.engine.backend import HiddenDtype, StageBackend
from services.engine.vllm.loader import VllmLoader, VllmOptions
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import open_source
from tests.foreign_models import FOREIGN_ON_VLLM, save_model
from tests.model_families import VLLM_MODELS, WINDOW, random_model, save
from tests.pipelines import Pipeline
from tests.references import check_ids
from tests.vllm.conftest import KV_BLOCKS

PROMPT = [(37 * i * i + 11 * i) % 300 for i in range(3 * WINDOW)]
FOREIGN_PROMPT = [5 + (7 * i * i + 3 * i) % 50 for i in range(40)]
OUTPUTS = 16
BLOCKS_PER_SLOT = 16


def _stages(folder: Path, dtype: HiddenDtype, layer_count: int) -> list[StageBackend]:
    store = folder / "store"
    with closing(open_source(folder / "source")) as checkpoint:
        digest = import_checkpoint(checkpoint, DirectoryBackend(store), "m").digest
    loader = VllmLoader(VllmOptions(str(store), dtype, "cpu", 256, 64))
    stages = []
    for layers in (LayerRange(0, 2), LayerRange(2, layer_count)):
        stage = loader.load(ModelRef("m", digest), StageSpec(layers), lambda done, total: None)
        stage.begin(KV_BLOCKS)
        stages.append(stage)
    return stages


def _says(folder: Path, dtype: HiddenDtype, layers: int, prompt: list[int]) -> list[int]:
    stages = _stages(folder, dtype, layers)
    assert all(stage.facts.exact for stage in stages)
    pipeline = Pipeline(stages, BLOCKS_PER_SLOT)
    said = pipeline.generate(prompt, OUTPUTS, chunks=[len(prompt) // 2])
    for stage in stages:
        stage.close()
    return said


def _compare(folder: Path, reference: Any, prompt: list[int]) -> None:
    layers = reference.config.num_hidden_layers
    reference = reference.float()
    said = _says(folder, "fp32", layers, prompt)
    with torch.inference_mode():
        logits = reference(torch.tensor([[*prompt, *said]])).logits[0, len(prompt) - 1 : -1]
    assert logits.argmax(1).tolist() == said
    assert len(set(said)) > 2
    check_ids(reference, prompt, _says(folder, "bf16", layers, prompt))


@pytest.mark.parametrize("name", VLLM_MODELS)
def test_a_native_family_says_what_transformers_says(name: str, tmp_path: Path) -> None:
    reference = random_model(name, **VLLM_MODELS[name])
    save(reference, tmp_path / "source")
    _compare(tmp_path, reference, PROMPT)


@pytest.mark.parametrize("model_type", FOREIGN_ON_VLLM)
def test_a_family_that_only_vllm_has_says_what_transformers_says(
    model_type: str, tmp_path: Path
) -> None:
    save_model(model_type, tmp_path / "source", spread=0.3, **FOREIGN_ON_VLLM[model_type])
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "source", dtype=torch.float32, attn_implementation="eager"
    )
    _compare(tmp_path, reference, FOREIGN_PROMPT)


def test_windows_on_some_layers_of_a_qwen_are_refused_by_field(tmp_path: Path) -> None:
    save(random_model("Qwen 2 with windows", hidden_size=192), tmp_path / "source")
    with pytest.raises(FailedPrecondition, match=r"max_window_layers: .*; native can"):
        _stages(tmp_path, "fp32", 5)
