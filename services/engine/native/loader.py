"""Stages from the node's tensor store, for the native backend.

torch takes seconds to import: `warm` does it in a thread of its own while the process registers.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from opentelemetry import trace

from services.common.errors import InvalidArgument, Unavailable
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import StageSpec
from services.engine.backend import StageBackend
from services.engine.core.memory import StageSize
from services.engine.ranks.rank import Rank
from services.engine.stages import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from services.engine.native.model import NativeModel
    from services.model.config import ModelConfig
    from services.tensorstore.client import StoredModel


_tracer = trace.get_tracer("shuntserve")
"""Not the kit's: a rank's process loads too, and sends no spans."""


@dataclass(frozen=True, slots=True)
class NativeOptions:
    """Where weights are, and how stages compute."""

    store: str
    dtype: Literal["bf16", "fp32"]
    device: str
    threads: int
    kernel_cache: Path | None


class NativeLoader:
    """Implements StageLoader: for stages that one rank runs, or for one rank of those that several
    run."""

    def __init__(self, options: NativeOptions, rank: Rank | None = None) -> None:
        self._options, self._rank = options, rank
        self._warm = threading.Thread(target=self._import, name="warm", daemon=True)
        self._known: dict[ModelRef, tuple[StoredModel, ModelConfig]] = {}
        self._models: dict[ModelRef, NativeModel] = {}
        self._lock = threading.Lock()

    def warm(self) -> None:
        self._warm.start()

    @staticmethod
    def _import() -> None:
        import services.engine.native.model
        import services.tensorstore.client  # noqa: F401

    def measure(self, model: ModelRef, spec: StageSpec) -> StageSize:
        _, config = self._open(model)
        from services.engine.native.model import kv_block_bytes, layer_bytes
        from services.engine.native.slices import slice_of

        layers = spec.layers
        if layers.end > config.layer_count:
            raise InvalidArgument(
                f"layers [{layers.start}, {layers.end}) of {config.layer_count}",
                field="stages.layers",
            )
        span, dtype = range(layers.start, layers.end), self._options.dtype
        part = slice_of(config, spec.tp_degree)
        if part.ranks > 1 and self._options.device != "cpu":
            raise InvalidArgument(
                f"TP degree {part.ranks}: the native backend runs several ranks on CPUs alone",
                field="tp_degree",
            )
        sizes = layer_bytes(part, span, dtype)
        block_bytes = kv_block_bytes(part, span, dtype)
        return StageSize(model, spec, sizes, block_bytes, shared=part.ranks == 1)

    def load(self, model: ModelRef, spec: StageSpec, progress: Progress) -> StageBackend:
        with _tracer.start_as_current_span("engine.load.open"):  # and what is imported yet
            stored, config = self._open(model)
        with _tracer.start_as_current_span("engine.load.arithmetic"):
            native = self._model(model, stored, config)
        span = range(spec.layers.start, spec.layers.end)
        runs = [LayerRange(run.start, run.stop) for run in native.lacking(span)]
        part = (spec.tp_degree, 0 if self._rank is None else self._rank.number)
        sizes = [stored.size_bytes(run, *part) for run in runs]
        for index, run in enumerate(runs):
            before, size_bytes = sum(sizes[:index]), sizes[index]
            of_run = _share(progress, before, size_bytes, sum(sizes))
            with ExitStack() as opened:
                with _tracer.start_as_current_span("engine.load.weights"):
                    stage = opened.enter_context(stored.stage(run, *part, progress=of_run))
                with _tracer.start_as_current_span("engine.load.pack"):
                    tensors = _on_device(stage.tensors, self._options.device)
                    for layer in range(run.start, run.end):
                        progress(before + size_bytes, sum(sizes))
                        native.pack(tensors, range(layer, layer + 1))
        progress(sum(sizes), sum(sizes))
        if span.stop == config.layer_count and native.grammars is not None:
            native.grammars.warm()
        with _tracer.start_as_current_span("engine.load.self_test"):
            return native.stage(span)

    def prefetch(self, model: ModelRef, spec: StageSpec, progress: Progress) -> None:
        stored, _ = self._open(model)
        of_all = _share(progress, 0, size_bytes := stored.size_bytes(spec.layers), size_bytes)
        stored.prefetch(spec.layers, progress=of_all)

    def retain(self, layers: Mapping[ModelRef, Collection[int]]) -> None:
        with self._lock:
            self._known = {model: known for model, known in self._known.items() if model in layers}
            self._models = {model: held for model, held in self._models.items() if model in layers}
            models = dict(self._models)
        for model, held in models.items():
            held.retain(layers[model])

    def _open(self, model: ModelRef) -> tuple[StoredModel, ModelConfig]:
        if self._warm.is_alive():
            self._warm.join()
        from services.model.backends import NATIVE, backends_of
        from services.model.config import parse_config
        from services.tensorstore.client import open_store

        if not self._options.store:
            raise Unavailable("no tensor store is set", field="store")
        with self._lock:
            known = self._known.get(model)
        if known is None:
            stored = open_store(self._options.store).model(model.model_id, model.digest)
            backends_of(stored.config, tiled=stored.manifest.is_tiled).check(NATIVE)
            known = (stored, parse_config(stored.config))
            with self._lock:
                self._known[model] = known
        return known

    def _model(self, model: ModelRef, stored: StoredModel, config: ModelConfig) -> NativeModel:
        from services.engine.native.model import NativeModel, meet, packer
        from services.engine.stage.grammars import grammars_of

        with self._lock:
            held = self._models.get(model)
        if held is None:
            options, rank, meeting = self._options, self._rank, None
            if rank is not None:
                meeting = meet(
                    config, rank.memory_fd, rank.number, rank.count, options.kernel_cache
                )
            implementation = packer(
                options.dtype,
                options.device,
                options.threads,
                cache=options.kernel_cache,
                meeting=meeting,
            )
            grammars = grammars_of(stored.config, stored.tokenizer_files)
            held = NativeModel(config, options.dtype, implementation, meeting, grammars)
            with self._lock:
                self._models[model] = held
        return held


def _share(progress: Progress, before: int, size_bytes: int, total_bytes: int) -> Progress:
    """Progress of a part, whatever it counts, as bytes of the whole."""

    def of_part(done: int, total: int) -> None:
        progress(before + size_bytes * done // max(total, 1), total_bytes)

    return of_part


def _on_device(tensors: Mapping[str, Tensor], device: str) -> Mapping[str, Tensor]:
    """Where the layers are computed."""
    if not device.startswith("cuda"):
        return tensors
    from services.engine.native.upload import CudaLink, upload

    return upload(tensors, CudaLink(device))
