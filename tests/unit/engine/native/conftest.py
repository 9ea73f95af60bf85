"""Tiny random models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from services.engine.native.model import load_stage
from services.engine.native.stage import NativeStage
from services.model.config import ModelConfig, parse_config
from services.model.tensors import stage_shapes
from tests.configs import LLAMA
from tests.pipelines import Pipeline


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """As in an engine; more threads stand still together when anything else wants a core."""
    torch.set_num_threads(1)


@dataclass
class TinyModel:
    """A random model, and stages of it that are closed with the test."""

    raw: dict[str, Any]
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    stages: list[NativeStage] = field(default_factory=list)

    def stage(self, layers: range | None = None, **options: Any) -> NativeStage:
        """A loaded stage; all layers by default."""
        options = {"kv_blocks": 64, "self_test": False, **options}
        stage = load_stage(
            self.config, self.tensors, layers or range(self.config.layer_count), **options
        )
        self.stages.append(stage)
        return stage


@pytest.fixture
def tiny_model() -> Iterator[Callable[..., TinyModel]]:
    """A function (raw config, changes) to a random model."""
    models: list[TinyModel] = []

    def make(raw: Mapping[str, Any] = LLAMA, **changes: Any) -> TinyModel:
        merged = {**raw, **changes}
        config = parse_config(merged)
        generator = torch.Generator().manual_seed(7)
        tensors = {}
        for name, shape in stage_shapes(config, range(config.layer_count)).items():
            noise = torch.randn(shape, generator=generator)
            tensors[name] = (0.08 * noise if len(shape) > 1 else 1 + 0.2 * noise).bfloat16()
        models.append(TinyModel(merged, config, tensors))
        return models[-1]

    yield make
    for model in models:
        for stage in model.stages:
            stage.close()


@pytest.fixture
def pipeline() -> type[Pipeline]:
    """The class of pipelines."""
    return Pipeline
