"""A model in the memory of one process: layers that its stages share, each packed once."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from services.common.errors import InvalidArgument
from services.engine.backend import BLOCK_SIZE, HiddenDtype, ResidentTensor, StageFacts
from services.engine.native import kernels
from services.engine.native.arithmetic import Packing
from services.engine.native.compiled import CompiledPacking
from services.engine.native.cuda_layers import CudaPacking
from services.engine.native.exactness import Packer, fingerprint
from services.engine.native.padding import padded
from services.engine.native.stage import DTYPES, NativeLayer, NativeStage
from services.engine.native.torch_layers import TorchPacking
from services.engine.native.weights import check_tensors
from services.model.config import ModelConfig
from services.model.tensors import EMBEDDING, stage_shapes

ArithmeticChoice = Literal["auto", "torch"]


def kv_block_bytes(config: ModelConfig, layers: range, dtype: HiddenDtype) -> int:
    """Bytes of one KV block over the layers of a stage."""
    numbers = config.kv_heads * padded(config).head_dim * BLOCK_SIZE
    per_layer = 2 * numbers * DTYPES[dtype].itemsize
    return per_layer * len(layers)


def layer_bytes(config: ModelConfig, layers: range, dtype: HiddenDtype) -> dict[int, int]:
    """Bytes of each layer as a stage holds it, whatever type it is stored in: the first one with
    the embedding, the last with norm and head. A tied matrix is held in two forms where both are.
    """
    config = padded(config)
    found: dict[int, int] = {}
    for layer in layers:
        shapes = stage_shapes(config, range(layer, layer + 1))
        numbers = sum(map(prod, shapes.values()))
        if config.tied_embeddings and config.layer_count == 1:
            numbers += config.vocab_size * config.hidden_size
        found[layer] = numbers * DTYPES[dtype].itemsize
    return found


def packer(
    dtype: HiddenDtype,
    device: str = "cpu",
    threads: int = 1,
    choice: ArithmeticChoice = "auto",
    cache: Path | None = None,
) -> Packer:
    """The implementation for a device: kernels where they can be built, else torch."""
    library = kernels.load(cache) if (device, choice) == ("cpu", "auto") else None

    def pack(config: ModelConfig) -> Packing[Any, Any]:
        if device != "cpu":
            return CudaPacking(config, DTYPES[dtype], device)
        if library is None:
            return TorchPacking(config, DTYPES[dtype])
        return CompiledPacking(library, config, DTYPES[dtype], threads)

    return pack


class NativeModel:
    """Stages of one model, and the layers they are made of. One thread packs; others may let go."""

    def __init__(self, config: ModelConfig, dtype: HiddenDtype, packer: Packer) -> None:
        self._config, self._dtype = config, dtype
        self._packing = packer(config)
        self._class = f"{self._packing.name}-{fingerprint(packer, DTYPES[dtype])}"
        self._layers: dict[int, NativeLayer] = {}
        self._lock = threading.Lock()

    def lacking(self, layers: range) -> list[range]:
        """The layers that have yet to be packed, by runs."""
        with self._lock:
            missing = [layer for layer in layers if layer not in self._layers]
        runs: list[range] = []
        for layer in missing:
            if runs and runs[-1].stop == layer:
                runs[-1] = range(runs[-1].start, layer + 1)
            else:
                runs.append(range(layer, layer + 1))
        return runs

    def pack(self, tensors: Mapping[str, Tensor], layers: range) -> None:
        """Holds copies of layers; nothing of `tensors` is referred to afterwards, but for matrices
        that lie on a GPU already. Raises InvalidArgument for a tensor that cannot be."""
        sizes = check_tensors(self._config, tensors, layers)
        for layer in layers:
            names = stage_shapes(self._config, range(layer, layer + 1))
            embedding = None
            if layer == 0:
                embedding = tensors[EMBEDDING].to(DTYPES[self._dtype], copy=True)
            last = layer == self._config.layer_count - 1
            packed = NativeLayer(
                self._packing.layer(tensors, layer),
                embedding,
                self._packing.head(tensors) if last else None,
                tuple(ResidentTensor(name, sizes[name]) for name in names),
            )
            with self._lock:
                self._layers[layer] = packed

    def stage(self, layers: range, *, self_test: bool = True) -> NativeStage:
        """A stage of packed layers. The self-test takes about a second; without it the stage counts
        as inexact."""
        config = self._config
        with self._lock:
            held = {layer: self._layers[layer] for layer in layers}
        facts = StageFacts(
            layers=layers,
            layer_count=config.layer_count,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            hidden_dtype=self._dtype,
            numerics_class=f"inexact-{self._class}",
            exact=False,
        )
        stage = NativeStage(facts, self._packing, held)
        if self_test and stage.is_exact(config, DTYPES[self._dtype]):
            stage.declare(f"exact-{self._class}", exact=True)
        return stage

    def retain(self, layers: Collection[int]) -> None:
        """Lets go of all other layers; stages keep theirs until they are closed."""
        with self._lock:
            self._layers = {n: layer for n, layer in self._layers.items() if n in layers}


def check_layers(config: ModelConfig, layers: range) -> None:
    """Raises InvalidArgument for a range that the model does not have."""
    if not 0 <= layers.start < layers.stop <= config.layer_count or layers.step != 1:
        raise InvalidArgument(
            f"layers {layers.start} to {layers.stop} of {config.layer_count}", field="layers"
        )


def load_stage(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    layers: range,
    *,
    kv_blocks: int,
    dtype: HiddenDtype = "bf16",
    device: str = "cpu",
    threads: int = 1,
    arithmetic: ArithmeticChoice = "auto",
    kernel_cache: Path | None = None,
    self_test: bool = True,
) -> NativeStage:
    """A stage that shares nothing, of tensors at hand, and ready to compute.

    Raises InvalidArgument for a range or tensor that cannot be.
    """
    check_layers(config, layers)
    model = NativeModel(config, dtype, packer(dtype, device, threads, arithmetic, kernel_cache))
    model.pack(tensors, layers)
    stage = model.stage(layers, self_test=self_test)
    stage.begin(kv_blocks)
    return stage
