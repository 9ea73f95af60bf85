"""A model in the memory of one process: layers that its stages share, each packed once."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from services.common.errors import FailedPrecondition, InvalidArgument
from services.engine.backend import BLOCK_SIZE, HiddenDtype, ResidentTensor, StageFacts
from services.engine.native import kernels
from services.engine.native.arithmetic import Packing
from services.engine.native.compiled import CompiledPacking
from services.engine.native.cuda_layers import CudaPacking
from services.engine.native.exactness import Packer, fingerprint
from services.engine.native.meeting import Meeting
from services.engine.native.padding import LANES
from services.engine.native.slices import Slice, slice_of
from services.engine.native.stage import DTYPES, KvHeads, NativeLayer, NativeStage
from services.engine.native.torch_layers import TorchPacking
from services.engine.native.weights import check_tensors
from services.model.config import ModelConfig
from services.model.grammar import LateGrammars
from services.model.tensors import stage_shapes

ArithmeticChoice = Literal["auto", "torch"]


def kv_block_bytes(part: Slice, layers: range, dtype: HiddenDtype) -> int:
    """Bytes of one KV block over the layers of a stage, of all ranks."""
    config = part.padded
    numbers = config.kv_heads * config.head_dim * BLOCK_SIZE
    per_layer = 2 * numbers * DTYPES[dtype].itemsize
    return per_layer * len(layers) * part.ranks


def layer_bytes(part: Slice, layers: range, dtype: HiddenDtype) -> dict[int, int]:
    """Bytes of each layer as the ranks of a stage hold it, whatever type it is stored in: the first
    one with the embedding, the last with norm and head. A tied matrix is held in two forms where
    both are."""
    config = part.padded
    found: dict[int, int] = {}
    for layer in layers:
        shapes = stage_shapes(config, range(layer, layer + 1))
        numbers = sum(map(prod, shapes.values()))
        if config.tied_embeddings and config.layer_count == 1:
            numbers += config.vocab_size * config.hidden_size
        found[layer] = numbers * DTYPES[dtype].itemsize * part.ranks
    return found


def packer(
    dtype: HiddenDtype,
    device: str = "cpu",
    threads: int = 1,
    choice: ArithmeticChoice = "auto",
    cache: Path | None = None,
    meeting: Meeting | None = None,
) -> Packer:
    """The implementation for a device: kernels where they can be built, else torch."""
    library = kernels.load(cache) if (device, choice) == ("cpu", "auto") else None

    def pack(part: Slice) -> Packing[Any, Any]:
        if library is not None:
            return CompiledPacking(library, part, DTYPES[dtype], threads, meeting)
        if device != "cpu":
            return CudaPacking(part.config, DTYPES[dtype], device)
        return TorchPacking(part.config, DTYPES[dtype])

    return pack


def meet(
    config: ModelConfig, memory_fd: int, rank: int, ranks: int, cache: Path | None = None
) -> Meeting:
    """Where this rank of a model's stage meets the others. Raises FailedPrecondition where there
    are no kernels, for torch's layers know nothing of ranks."""
    library = kernels.load(cache)
    if library is None:
        raise FailedPrecondition(
            f"TP degree {ranks}: several ranks need the compiled kernels", field="tp_degree"
        )
    part = slice_of(config, ranks, rank)
    row_bytes = 4 * max(part.padded.hidden_size + LANES, part.config.vocab_size)
    return Meeting(library, memory_fd, rank, ranks, row_bytes)


class NativeModel:
    """Stages of one model, or of one rank's slice of it, and the layers they are made of. One
    thread packs; others may let go."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: HiddenDtype,
        packer: Packer,
        meeting: Meeting | None = None,
        grammars: LateGrammars | None = None,
    ) -> None:
        """Without `grammars` no text can be made to follow one."""
        degree, rank = (1, 0) if meeting is None else (meeting.ranks, meeting.rank)
        self._config, self._dtype, self._meeting = config, dtype, meeting
        self.grammars = grammars
        self._part = slice_of(config, degree, rank)
        self._packing = packer(self._part)
        digits = fingerprint(packer, DTYPES[dtype], config, degree, rank)
        self._class = f"{self._packing.name}-{digits}"
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
        sizes = check_tensors(self._part.config, tensors, layers)
        for layer in layers:
            names = stage_shapes(self._part.config, range(layer, layer + 1))
            embedding = None
            if layer == 0:
                embedding = self._packing.embedding(tensors)
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
            row_width=config.hidden_size,
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            hidden_dtype=self._dtype,
            numerics_class=f"inexact-{self._class}",
            exact=False,
        )
        heads = KvHeads(self._part.kv_heads_of(config.kv_heads), config.kv_heads)
        stage = NativeStage(facts, self._packing, held, self._meeting, self.grammars, heads=heads)
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
    grammars: LateGrammars | None = None,
) -> NativeStage:
    """A stage that shares nothing, of tensors at hand, and ready to compute.

    Raises InvalidArgument for a range or tensor that cannot be.
    """
    check_layers(config, layers)
    implementation = packer(dtype, device, threads, arithmetic, kernel_cache)
    model = NativeModel(config, dtype, implementation, grammars=grammars)
    model.pack(tensors, layers)
    stage = model.stage(layers, self_test=self_test)
    stage.begin(kv_blocks)
    return stage
