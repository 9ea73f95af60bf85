"""Stages from the node's tensor store, for the native backend.

torch takes seconds to import: `warm` does it in a thread of its own while the process registers.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from services.common.errors import FailedPrecondition, Unavailable
from services.common.generation import LayerRange, ModelRef
from services.engine.backend import BLOCK_SIZE, StageBackend
from services.engine.loading import Progress

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class NativeOptions:
    """How stages compute, and how much memory they may take."""

    store: str
    memory_bytes: int
    kv_positions: int
    dtype: Literal["bf16", "fp32"]
    device: str
    threads: int
    kernel_cache: Path | None


class NativeLoader:
    """Implements StageLoader."""

    def __init__(self, options: NativeOptions) -> None:
        self._options = options
        self._warm = threading.Thread(target=self._import, name="warm", daemon=True)

    def warm(self) -> None:
        """Begins to import what a load will need."""
        self._warm.start()

    @staticmethod
    def _import() -> None:
        import services.engine.native.model
        import services.tensorstore.client  # noqa: F401

    def load(self, model: ModelRef, layers: LayerRange, progress: Progress) -> StageBackend:
        if self._warm.is_alive():
            self._warm.join()
        from services.engine.native.model import kv_block_bytes, load_stage, weight_bytes
        from services.model.config import parse_config
        from services.tensorstore.client import open_store

        options = self._options
        if not options.store:
            raise Unavailable("no tensor store is set", field="store")
        stored = open_store(options.store).model(model.model_id, model.digest)
        config = parse_config(stored.config)
        span = range(layers.start, layers.end)
        # Before the weights come. It is for good: the same memory never holds the same layers.
        held_bytes = weight_bytes(config, span, options.dtype)
        block_bytes = kv_block_bytes(config, span, options.dtype)
        fitting = (options.memory_bytes - held_bytes) // block_bytes
        blocks = min(options.kv_positions // BLOCK_SIZE, fitting)
        if blocks < 1:
            raise FailedPrecondition(
                f"{held_bytes} bytes of weights leave no room for a KV cache in "
                f"{options.memory_bytes}",
                field="memory_bytes",
            )
        with stored.stage(layers, progress=progress) as stage:
            backend = load_stage(
                config,
                _on_device(stage.tensors, options.device),
                span,
                dtype=options.dtype,
                kv_blocks=blocks,
                device=options.device,
                threads=options.threads,
                kernel_cache=options.kernel_cache,
            )
            progress(stage.size_bytes, stage.size_bytes)
        return backend


def _on_device(tensors: Mapping[str, Tensor], device: str) -> Mapping[str, Tensor]:
    """Where the layers are computed. The embedding stays: ids are looked up on the host."""
    if not device.startswith("cuda"):
        return tensors
    from services.engine.native.upload import CudaLink, upload
    from services.model.tensors import EMBEDDING

    layers = {name: tensor for name, tensor in tensors.items() if name != EMBEDDING}
    return {**tensors, **upload(layers, CudaLink(device))}
