"""The layers of a stage, as vLLM builds and computes them, over a KV cache of ours."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import vllm
from numpy.typing import NDArray
from torch import Tensor
from vllm.config import get_layers_from_vllm_config, set_current_vllm_config
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.models import utils as model_utils
from vllm.sequence import IntermediateTensors
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.kv_cache_interface import AttentionSpec
from vllm.v1.kv_cache_layout import KVCacheLayout

from services.common.errors import InvalidArgument, ResourceExhausted, ShuntError
from services.engine.backend import BLOCK_SIZE
from services.engine.stage.spans import Span
from services.engine.vllm.arrays import Arrays
from services.engine.vllm.upstream.configuration import (
    DTYPES,
    PLACE,
    Options,
    configuration,
    join,
    machine,
    prepare,
    refusal,
)
from services.engine.vllm.upstream.weights import Loader

LEAST_ROWS = 4
"""One row alone takes other kernels, with other bits, than several; and of several, products on a
CPU take longer for two than for three or four."""
_running = threading.Lock()
"""One step at a time in the process, for vLLM keeps what a step is about in one place."""


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Layers that attend alike, and what makes their metadata."""

    names: tuple[str, ...]
    builder: Any


class Layers:
    """The layers [start, stop) of a model as vLLM computes them, with the embedding or the norm and
    head where they belong, over a KV cache of ours.

    Implements the arithmetic that the self-test of a stage asks. One process may hold several.
    """

    def __init__(
        self,
        hf_config: Mapping[str, Any],
        layers: range,
        weights: Iterable[tuple[str, Tensor]],
        options: Options,
        *,
        sliced: bool = False,
    ) -> None:
        """`weights` are whole checkpoint tensors, of which vLLM cuts what this rank needs; with
        `sliced`, this rank's parts of them. Raises InvalidArgument for a model that vLLM cannot run
        and for a tensor that is lacking."""
        self._device = torch.device(options.device)
        self._dtype = DTYPES[options.dtype]
        self._rank = options.ranks.rank
        prepare(options)
        self._config = configuration(hf_config, options)
        count = self._config.model_config.hf_text_config.num_hidden_layers
        parts = [layers.start, len(layers), count - layers.stop]
        self._place = int(layers.start > 0), sum(part > 0 for part in parts)
        self.first, self.last = layers.start == 0, layers.stop == count
        # Read at every build: with it, the layers in the middle of a pipeline are just these.
        os.environ["VLLM_PP_LAYER_PARTITION"] = ",".join(str(part) for part in parts if part)
        # Known by the address of a model: another one may be there by now.
        model_utils._model_to_pp_missing_layer_names.clear()
        with set_current_vllm_config(self._config), PLACE.at(*self._place):
            join(options.ranks, self._device)
            try:
                loader = Loader(self._config, layers, weights, sliced)
                self._model = loader.load_model(self._config, self._config.model_config)
            except ShuntError:
                raise
            except torch.OutOfMemoryError as error:
                raise ResourceExhausted(f"no memory for layers {layers}", field="stages") from error
            except Exception as error:  # as many kinds as there are models
                raise refusal(error) from error
            self._attention: dict[str, Any] = dict(
                get_layers_from_vllm_config(self._config, AttentionLayerBase)
            )
            self._groups = self._grouped()
            border = self._model.make_empty_intermediate_tensors(1, self._dtype, self._device)
        if options.ranks.size > 1 and self.last:
            self._model.logits_processor.use_all_gather = True  # each rank samples what all do
        self.parameter_bytes: Mapping[str, int] = loader.held
        """Of each parameter."""
        self._keys = tuple(border.tensors)
        self._widths = [int(tensor.shape[-1]) for tensor in border.tensors.values()]
        self._scratch = 0

    @property
    def row_width(self) -> int:
        """Numbers of a row between two stages: hidden states, and the residual beside them, for the
        norm behind the border adds them unrounded."""
        return sum(self._widths)

    @property
    def name(self) -> str:
        """What decides the bits of a row."""
        backends = {str(layer.get_attn_backend().get_name()) for layer in self._attention.values()}
        kinds = {str(getattr(group.builder, "isa", "")) for group in self._groups} - {""}
        ranks = self._config.parallel_config.tensor_parallel_size
        parts = (
            f"vllm{vllm.__version__}",
            f"torch{torch.__version__}",
            machine(self._device),
            *sorted(backends | kinds),
            str(self._dtype).removeprefix("torch."),
            f"tp{ranks}",
        )
        return "-".join(part.lower() for part in parts)

    def _grouped(self) -> list[_Group]:
        """Layers by kind: those of a window apart from those without."""
        kinds: dict[tuple[Any, Any], list[str]] = {}
        for name, layer in self._attention.items():
            spec = layer.get_kv_cache_spec(self._config)
            if not isinstance(spec, AttentionSpec):
                raise InvalidArgument(
                    f"{name} keeps a state that is no KV cache of blocks", field="model"
                )
            # Layers with a window say the size that their backend likes best; the blocks are ours.
            spec = replace(spec, block_size=BLOCK_SIZE)
            kinds.setdefault((layer.get_attn_backend(), spec), []).append(name)
        return [
            _Group(tuple(names), backend.get_builder_cls()(spec, names, self._config, self._device))
            for (backend, spec), names in kinds.items()
        ]

    # The KV cache

    def allocate(self, blocks: int) -> None:
        """An empty cache of blocks 0 to blocks - 1, and one of our own behind them."""
        self._scratch = blocks
        for layer in self._attention.values():
            spec, backend = layer.get_kv_cache_spec(self._config), layer.get_attn_backend()
            layouts = backend.supported_kv_cache_layouts() or (KVCacheLayout.LBNHC,)
            order = layouts[0].layer_view_order
            width = spec.head_size + spec.head_size_v  # keys and values side by side
            shape = (blocks + 1, spec.num_kv_heads, BLOCK_SIZE, width)
            memory = torch.zeros(
                [shape[axis] for axis in order], dtype=spec.dtype, device=self._device
            )
            layer.bind_kv_cache(memory.permute([order.index(axis) for axis in range(4)]))

    @property
    def kv_form(self) -> str:
        """Pages as they lie: what is inside is the kernel's own, which the class names."""
        return "vllm-pages"

    @property
    def kv_head_bytes(self) -> int:
        """Of a block, in one layer; 0 where layers differ in it, or in how many heads they have."""
        specs = [layer.get_kv_cache_spec(self._config) for layer in self._attention.values()]
        sizes = {
            (spec.num_kv_heads, (spec.head_size + spec.head_size_v) * spec.dtype.itemsize)
            for spec in specs
        }
        return BLOCK_SIZE * int(sizes.pop()[1]) if len(sizes) == 1 else 0

    @property
    def kv_heads(self) -> tuple[range, int]:
        """Those of this rank, and how many there are; ranks beyond them share one."""
        ranks = self._config.parallel_config.tensor_parallel_size
        layer = next(iter(self._attention.values()))
        own = int(layer.get_kv_cache_spec(self._config).num_kv_heads)
        if ranks == 1:
            return range(own), own
        whole = max(own, self._config.model_config.get_total_num_kv_heads())
        first = self._rank * whole // ranks // own * own
        return range(first, first + own), whole

    def export_blocks(self, blocks: Tensor) -> Tensor:
        """uint8 [blocks, layers, kv_heads, bytes] on the host."""
        places = blocks.to(self._device)
        held = [layer.kv_cache[places] for layer in self._attention.values()]
        pages = torch.stack(held, 1).contiguous().view(torch.uint8).flatten(3)
        return self._pinned_copy(pages)

    def import_blocks(self, blocks: Tensor, data: Tensor) -> None:
        """What was exported."""
        places, there = blocks.to(self._device), self._pinned_copy(data).to(self._device)
        for layer, pages in zip(self._attention.values(), there.unbind(1), strict=True):
            cache = layer.kv_cache
            shape = (len(blocks), *cache.shape[1:])
            cache[places] = pages.contiguous().view(cache.dtype).view(shape)

    def _pinned_copy(self, data: Tensor) -> Tensor:
        """On the host, in memory that the device reads and writes by itself."""
        pinned = torch.empty(data.shape, dtype=data.dtype, pin_memory=self._device.type == "cuda")
        return pinned.copy_(data)

    def release(self) -> None:
        """The cache goes."""
        for layer in self._attention.values():
            layer.bind_kv_cache(torch.empty(0))

    def close(self) -> None:
        """Cache and weights go; nothing may be called afterwards."""
        self.release()
        self._config.compilation_config.static_forward_context.clear()
        del self._model, self._attention, self._groups

    # A step

    @torch.inference_mode()
    def forward(self, rows: Tensor, spans: Sequence[Span]) -> Tensor:
        """Ids [rows] at the first stage, else [rows, row_width] in; the final hidden states
        [rows, hidden_size] out of the last stage, else [rows, row_width]."""
        count = len(rows)
        added = range(LEAST_ROWS - count)
        spans = [*spans, *(Span(count + at, 1, at, (self._scratch,)) for at in added)]
        rows = _enough(rows)
        step = Arrays.of(spans)
        positions, slots = self._there(step.positions), self._there(step.slots)
        attention = CommonAttentionMetadata(
            query_start_loc=self._there(step.starts),
            query_start_loc_cpu=torch.from_numpy(step.starts),
            seq_lens=self._there(step.lengths),
            seq_lens_cpu_upper_bound=torch.from_numpy(step.lengths),
            num_reqs=len(spans),
            num_actual_tokens=len(rows),
            max_query_len=int(step.counts.max()),
            max_seq_len=int(step.lengths.max()),
            block_table_tensor=self._there(step.tables),
            slot_mapping=slots,
            causal=True,
            positions=positions,
        )
        rows = rows.to(self._device)
        ids, carried = (rows, None) if self.first else (None, self._carried(rows))
        with _running, PLACE.at(*self._place):
            metadata: dict[str, Any] = {}
            for group in self._groups:
                built = group.builder.build(0, attention)
                metadata.update(dict.fromkeys(group.names, built))
            with set_forward_context(
                metadata,
                self._config,
                num_tokens=len(rows),
                slot_mapping=dict.fromkeys(metadata, slots),
            ):
                found = self._model(ids, positions, carried)
        if not self.last:
            found = torch.cat([found[key] for key in self._keys], dim=1)
        computed: Tensor = found[:count]
        return computed

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 [rows, vocab_size] on the host, of final hidden states; the same at every rank."""
        count = len(hidden)
        with _running, PLACE.at(*self._place):
            found = self._model.compute_logits(_enough(hidden).to(self._device))
        logits: Tensor = found[:count].float().cpu()
        return logits

    def _carried(self, rows: Tensor) -> IntermediateTensors:
        parts = torch.split(rows, self._widths, dim=1)
        return IntermediateTensors(
            {key: part.contiguous() for key, part in zip(self._keys, parts, strict=True)}
        )

    def _there(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _enough(rows: Tensor) -> Tensor:
    """With rows behind them that nobody asks for, where there are fewer than `LEAST_ROWS`."""
    lacking = LEAST_ROWS - len(rows)
    return rows if lacking <= 0 else torch.cat((rows, rows[:1].expand(lacking, *rows.shape[1:])))
