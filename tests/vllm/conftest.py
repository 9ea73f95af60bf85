"""Tiny random models in a store, and stages of them as an engine loads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from services.common.generation import LayerRange, ModelRef
from services.common.nodes import StageSpec
from services.engine.backend import StageBackend
from services.engine.vllm.loader import VllmLoader, VllmOptions
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import open_source
from tests.checkpoints import make_config, shapes_of, write_checkpoint

LLAMA = make_config(
    hidden_size=96,
    intermediate_size=1136,
    num_hidden_layers=5,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=515,
    max_position_embeddings=512,
    tie_word_embeddings=True,
)
QWEN3 = LLAMA | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 64,
    "tie_word_embeddings": False,
}
KV_BLOCKS = 64


def pytest_configure(config: pytest.Config) -> None:
    """What others warn of is theirs: vLLM and what it imports do."""
    for line in ("ignore::Warning", r"error:::(services|tests)\."):
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """As in an engine; more threads stand still together when anything else wants a core."""
    torch.set_num_threads(1)


def random_tensors(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a model that says something."""
    generator, tensors = torch.Generator().manual_seed(7), {}
    for name, shape in shapes_of(config).items():
        noise = torch.randn(shape, generator=generator)
        tensors[name] = (0.08 * noise if len(shape) > 1 else 1 + 0.2 * noise).bfloat16()
    return tensors


@dataclass
class Stored:
    """A model in a store, and stages of it that are closed with the test."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    model: ModelRef
    store: Path
    stages: list[StageBackend] = field(default_factory=list)

    def loader(self, dtype: str = "bf16") -> VllmLoader:
        return VllmLoader(VllmOptions(str(self.store), dtype, "cpu", 256, 64))  # type: ignore[arg-type]

    def stage(self, layers: range | None = None, dtype: str = "bf16") -> StageBackend:
        """Loaded and begun; all layers by default."""
        layers = layers or range(self.config["num_hidden_layers"])
        spec = StageSpec(LayerRange(layers.start, layers.stop))
        stage = self.loader(dtype).load(self.model, spec, lambda done, total: None)
        stage.begin(KV_BLOCKS)
        self.stages.append(stage)
        return stage


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Stored]:
    """A function (config) to a random model in a store."""
    folder = tmp_path_factory.mktemp("models")
    known: dict[str, Stored] = {}

    def make(config: Mapping[str, Any] = LLAMA) -> Stored:
        name = f"{config['model_type']}-{len(known)}"
        for stored in known.values():
            if stored.config == config:
                return stored
        tensors = random_tensors(config)
        source = open_source(write_checkpoint(folder / name, config, tensors))
        try:
            digest = import_checkpoint(source, DirectoryBackend(folder / "store"), name).digest
        finally:
            source.close()
        known[name] = Stored(dict(config), tensors, ModelRef(name, digest), folder / "store")
        return known[name]

    return make
