"""Loading a stage."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from services.common.errors import InvalidArgument
from services.engine.backend import BLOCK_SIZE, HiddenDtype, ResidentTensor, StageFacts
from services.engine.native import kernels
from services.engine.native.arithmetic import Arithmetic
from services.engine.native.compiled import CompiledLayers
from services.engine.native.exactness import Build, fingerprint, is_exact
from services.engine.native.padding import padded
from services.engine.native.stage import DTYPES, NativeStage
from services.engine.native.torch_layers import TorchLayers
from services.engine.native.weights import check_tensors
from services.model.config import ModelConfig
from services.model.tensors import EMBEDDING, stage_shapes

ArithmeticChoice = Literal["auto", "torch"]


def kv_block_bytes(config: ModelConfig, layers: range, dtype: HiddenDtype) -> int:
    """Bytes of one KV block over the layers of a stage."""
    numbers = config.kv_heads * padded(config).head_dim * BLOCK_SIZE
    per_layer = 2 * numbers * DTYPES[dtype].itemsize
    return per_layer * len(layers)


def weight_bytes(config: ModelConfig, layers: range, dtype: HiddenDtype) -> int:
    """Bytes of a stage's weights as it holds them, whatever type they are stored in. A stage that
    embeds and samples with one tied matrix holds it in two forms."""
    config = padded(config)
    numbers = sum(prod(shape) for shape in stage_shapes(config, layers).values())
    if config.tied_embeddings and len(layers) == config.layer_count:
        numbers += config.vocab_size * config.hidden_size
    return numbers * DTYPES[dtype].itemsize


def _builder(
    dtype: torch.dtype, device: str, threads: int, choice: ArithmeticChoice, cache: Path | None
) -> Build:
    library = kernels.load(cache) if (device, choice) == ("cpu", "auto") else None

    def build(
        config: ModelConfig, tensors: Mapping[str, Tensor], layers: range, kv_blocks: int
    ) -> Arithmetic:
        if library is None:
            return TorchLayers(config, tensors, layers, dtype, kv_blocks, device)
        return CompiledLayers(library, config, tensors, layers, dtype, kv_blocks, threads)

    return build


def load_stage(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    layers: range,
    *,
    dtype: HiddenDtype = "bf16",
    kv_blocks: int | None = None,
    kv_bytes: int = 1 << 30,
    device: str = "cpu",
    threads: int = 1,
    arithmetic: ArithmeticChoice = "auto",
    kernel_cache: Path | None = None,
    self_test: bool = True,
) -> NativeStage:
    """A stage that holds copies of its own; nothing of `tensors` is referred to afterwards, but for
    matrices that lie on a GPU already.

    `layers` is half-open with step 1. `kv_blocks` defaults to what fits in `kv_bytes`. The
    self-test takes about a second; without it the stage counts as inexact.
    Raises InvalidArgument for a range, tensor or size that cannot be.
    """
    if not 0 <= layers.start < layers.stop <= config.layer_count or layers.step != 1:
        raise InvalidArgument(
            f"layers {layers.start} to {layers.stop} of {config.layer_count}", field="layers"
        )
    sizes = check_tensors(config, tensors, layers)
    blocks = kv_blocks or kv_bytes // kv_block_bytes(config, layers, dtype)
    if blocks < 1:
        raise InvalidArgument("no KV block fits", field="kv_bytes")
    torch_dtype = DTYPES[dtype]
    build = _builder(torch_dtype, device, threads, arithmetic, kernel_cache)
    implementation = build(config, tensors, layers, blocks)
    name = f"{implementation.name}-{fingerprint(build, torch_dtype)}"
    embedding = None
    if layers.start == 0:
        embedding = tensors[EMBEDDING].to(torch_dtype, copy=True)
    facts = StageFacts(
        layers=layers,
        layer_count=config.layer_count,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        context_length=min(config.context_length, blocks * BLOCK_SIZE),
        kv_blocks=blocks,
        hidden_dtype=dtype,
        numerics_class=f"inexact-{name}",
        exact=False,
    )
    resident = tuple(ResidentTensor(name, size) for name, size in sizes.items())
    stage = NativeStage(facts, implementation, embedding, resident)
    if self_test and is_exact(implementation, config, blocks, torch_dtype, last=facts.last):
        stage.declare(f"exact-{name}", exact=True)
    return stage
