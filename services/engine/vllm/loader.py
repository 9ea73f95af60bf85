"""Stages from the node's tensor store, for the vLLM backend.

vLLM takes seconds to import: `warm` does it in a thread of its own while the process registers.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from services.common.errors import InvalidArgument, ShuntError, Unavailable
from services.common.generation import ModelRef
from services.common.nodes import StageSpec
from services.engine.backend import (
    HiddenDtype,
    ResidentLayer,
    ResidentTensor,
    StageBackend,
    StageFacts,
)
from services.engine.core.memory import StageSize
from services.engine.ranks.rank import Rank
from services.engine.stage.slots import ELEMENT_BYTES
from services.engine.stages import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from services.engine.vllm.upstream.configuration import Options, Shape
    from services.tensorstore.client import StoredModel

_LAYER = re.compile(r"\blayers\.(\d+)\.")
VOCABULARY_UNIT = 64
"""vLLM pads a vocabulary to a multiple of this and then cuts it. Where that is another cut than the
store's, a rank maps whole tensors and has vLLM take from them what is its own."""
_CONVERTED = ("BF16", "F16", "F32")
"""Types of stored tensors that vLLM holds as the element type it computes with."""


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """Where weights are, and how stages compute."""

    store: str
    dtype: HiddenDtype
    device: str
    max_rows: int
    max_sequences: int


class VllmLoader:
    """Implements StageLoader, for stages that one rank runs or for one rank of those that several
    run; stages share nothing."""

    def __init__(self, options: VllmOptions, rank: Rank | None = None) -> None:
        device = options.device if rank is None else rank.device(options.device)
        self._options, self._rank = replace(options, device=device), rank
        self._warm = threading.Thread(target=self._import, name="warm", daemon=True)
        self._known: dict[tuple[ModelRef, int], tuple[StoredModel, Shape]] = {}
        """By model and degree."""
        self._lock = threading.Lock()

    def warm(self) -> None:
        self._warm.start()

    @staticmethod
    def _import() -> None:
        import services.engine.vllm.stage
        import services.engine.vllm.upstream.layers
        import services.tensorstore.client  # noqa: F401

    def measure(self, model: ModelRef, spec: StageSpec) -> StageSize:
        stored, shape = self._open(model, spec.tp_degree)
        layers = spec.layers
        if layers.end > shape.layer_count:
            raise InvalidArgument(
                f"layers [{layers.start}, {layers.end}) of {shape.layer_count}",
                field="stages.layers",
            )
        span = range(layers.start, layers.end)
        return StageSize(
            model,
            spec,
            _layer_bytes(stored, span, self._options.dtype, spec.tp_degree),
            shape.kv_block_bytes * len(span) * spec.tp_degree,
            shared=False,
        )

    def load(self, model: ModelRef, spec: StageSpec, progress: Progress) -> StageBackend:
        stored, shape = self._open(model, spec.tp_degree)
        from services.engine.stage.grammars import grammars_of
        from services.engine.vllm.stage import VllmStage
        from services.engine.vllm.upstream.configuration import refusal
        from services.engine.vllm.upstream.layers import Layers

        span, rank = range(spec.layers.start, spec.layers.end), self._rank
        alike = stored.manifest.is_tiled and shape.vocab_size % VOCABULARY_UNIT == 0
        sliced = rank is not None and alike
        part = (rank.count, rank.number) if rank is not None and sliced else (1, 0)
        total_bytes = stored.size_bytes(spec.layers, *part)

        def fetched(done: int, total: int) -> None:
            progress(total_bytes * done // max(total, 1), total_bytes)

        with stored.stage(spec.layers, *part, progress=fetched) as mapped:

            def weights() -> Iterator[tuple[str, Tensor]]:
                for name, tensor in mapped.tensors.items():
                    progress(total_bytes, total_bytes)
                    yield name, tensor

            layers = Layers(
                stored.config,
                span,
                weights(),
                self._upstream(spec.tp_degree),
                sliced=sliced,
            )
            sizes = {name: tensor.nbytes for name, tensor in mapped.tensors.items()}
        facts = StageFacts(
            layers=span,
            layer_count=shape.layer_count,
            row_width=layers.row_width,
            vocab_size=shape.vocab_size,
            context_length=shape.context_length,
            hidden_dtype=self._options.dtype,
            numerics_class=layers.name,
            exact=False,
        )
        resident = _resident(stored, span, sizes, layers.parameter_bytes)
        grammars = grammars_of(stored.config, stored.tokenizer_files)
        if facts.last:
            grammars.warm()
        try:
            return VllmStage(facts, layers, resident, grammars)
        except ShuntError:
            raise
        except Exception as error:  # its first step: as many kinds as there are kernels
            raise refusal(error) from error

    def prefetch(self, model: ModelRef, spec: StageSpec, progress: Progress) -> None:
        stored, _ = self._open(model, spec.tp_degree)
        total_bytes = stored.size_bytes(spec.layers)
        stored.prefetch(
            spec.layers,
            progress=lambda done, total: progress(total_bytes * done // max(total, 1), total_bytes),
        )

    def retain(self, layers: Mapping[ModelRef, Collection[int]]) -> None:
        """Stages share no layers: with each go its own."""
        with self._lock:
            self._known = {of: known for of, known in self._known.items() if of[0] in layers}

    def _upstream(self, degree: int) -> Options:
        from services.engine.vllm.upstream.configuration import Options, Ranks

        chosen, rank = self._options, self._rank
        ranks = Ranks(size=degree)
        if rank is not None:
            meet_at = f"file:///proc/self/fd/{rank.memory_fd}"
            ranks = Ranks(rank.number, rank.count, meet_at, rank.meeting)
        return Options(
            dtype=chosen.dtype,
            device=chosen.device,
            ranks=ranks,
            max_rows=chosen.max_rows,
            max_sequences=chosen.max_sequences,
        )

    def _open(self, model: ModelRef, degree: int) -> tuple[StoredModel, Shape]:
        """Raises InvalidArgument for a degree that does not divide the model, FailedPrecondition
        for weights that vLLM does not compute on this device."""
        if self._warm.is_alive():
            self._warm.join()
        from services.engine.vllm.upstream.configuration import kind_of, shape
        from services.model.backends import VLLM, backends_of
        from services.model.vllm_quantisation import check_place
        from services.tensorstore.client import open_store

        if not self._options.store:
            raise Unavailable("no tensor store is set", field="store")
        with self._lock:
            known = self._known.get((model, degree))
        if known is None:
            stored = open_store(self._options.store).model(model.model_id, model.digest)
            backends_of(stored.config, tiled=stored.manifest.is_tiled).check(VLLM)
            check_place(stored.config, kind_of(self._options.device), self._options.dtype)
            if stored.manifest.is_tiled:  # of others vLLM says what does not divide
                stored.manifest.tiling.check_degree(degree)
            known = (stored, shape(stored.config, self._upstream(degree)))
            with self._lock:
                self._known[model, degree] = known
        return known


def _layers_of(stored: StoredModel, name: str) -> set[int]:
    """Where a tensor is held: the embedding with the first layer, norm and head with the last."""
    tensor, last = stored.manifest.by_name[name], stored.layers - 1
    tied = stored.manifest.tied and tensor.layer == -1
    return {min(max(tensor.layer, 0), last)} | ({last} if tied else set())


def _layer_bytes(
    stored: StoredModel, layers: range, dtype: HiddenDtype, degree: int
) -> dict[int, int]:
    """Bytes of each layer as vLLM holds it, at all ranks; quantised tensors stay as they are
    stored."""
    found = dict.fromkeys(layers, 0)
    for name, tensor in stored.manifest.by_name.items():
        size_bytes = tensor.size_bytes
        if tensor.dtype in _CONVERTED:
            size_bytes = prod(tensor.shape) * ELEMENT_BYTES[dtype]
        if len(tensor.shape) < 2:  # a norm, that each holds whole
            size_bytes *= degree
        for layer in _layers_of(stored, name) & found.keys():
            found[layer] += size_bytes
    return found


def _resident(
    stored: StoredModel, layers: range, sizes: Mapping[str, int], packed: Mapping[str, int]
) -> dict[int, ResidentLayer]:
    """`sizes` are those of the checkpoint's tensors, `packed` those of vLLM's parameters."""
    tensors: dict[int, list[ResidentTensor]] = {layer: [] for layer in layers}
    for name, size_bytes in sizes.items():
        for layer in _layers_of(stored, name) & tensors.keys():
            tensors[layer].append(ResidentTensor(name, size_bytes))
    held = dict.fromkeys(layers, 0)
    for name, size_bytes in packed.items():
        numbered = _LAYER.search(name)
        if numbered is not None:
            layer = int(numbered[1])
        else:
            layer = layers.start if "embed" in name and layers.start == 0 else layers.stop - 1
        held[layer] += size_bytes
    return {layer: ResidentLayer(tuple(tensors[layer]), held[layer]) for layer in layers}
