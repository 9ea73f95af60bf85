"""What can be imported: a config, the files beside the weights, and tensors read by rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from services.common.errors import InvalidArgument
from services.tensorstore.dtypes import item_bytes
from services.tensorstore.tiling import EMBEDDING, FINAL_NORM, LM_HEAD, Tiling, place

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
CONFIG_LIMIT_BYTES = 4 << 20
_NEEDED = (
    "input_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "post_attention_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)


@dataclass(frozen=True)
class SourceTensor:
    """A tensor as the store will keep it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one step along the first axis."""
        size = item_bytes(self.dtype)
        for extent in self.shape[1:]:
            size *= extent
        return size

    @property
    def size_bytes(self) -> int:
        return self.row_bytes * self.shape[0]


class Checkpoint(Protocol):
    """A source of weights."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def files(self) -> Mapping[str, bytes]: ...

    @property
    def tensors(self) -> Mapping[str, SourceTensor]: ...

    def read_rows(self, name: str, first: int, last: int, into: memoryview) -> None:
        """Fills the buffer with rows [first, last); raises DataLoss if the source changed."""

    def close(self) -> None: ...


def check(checkpoint: Checkpoint) -> Tiling:
    """Raises InvalidArgument unless the tensors are a whole model of a family the store knows."""
    config, tensors = checkpoint.config, checkpoint.tensors
    _check_config(config)
    names = config.get("architectures")
    if not isinstance(names, list) or not any(name in ARCHITECTURES for name in names):
        raise InvalidArgument(
            f"architectures must name one of {', '.join(ARCHITECTURES)}", field="architectures"
        )
    tiling = Tiling.of_config(config)
    needed = [EMBEDDING, FINAL_NORM]
    if not is_tied(config):
        needed.append(LM_HEAD)
    needed += [f"model.layers.{n}.{part}" for n in range(tiling.layers) for part in _NEEDED]
    for name in needed:
        if name not in tensors:
            raise InvalidArgument(f"tensor {name} is missing", field="tensors")
    for tensor in tensors.values():
        where = place(tensor.name, tiling.layers)
        if where.axis == 1 and len(tensor.shape) != 2:
            raise InvalidArgument(
                f"{tensor.name} of shape {list(tensor.shape)} is no matrix", field="shape"
            )
        if where.unit is not None and tensor.shape[where.axis] % tiling.units(where.unit):
            raise InvalidArgument(
                f"{tensor.name} of shape {list(tensor.shape)} is not made of"
                f" {tiling.units(where.unit)} {where.unit} along axis {where.axis}",
                field="shape",
            )
    return tiling


def _check_config(config: Mapping[str, Any]) -> None:
    """It becomes part of the manifest, so it must be fit for one before any weights are written."""
    try:
        text = json.dumps(dict(config), allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:  # 1e999 is read as infinity
        raise InvalidArgument(f"config: {ascii(str(error))[:120]}", field="config") from None
    if len(text) > CONFIG_LIMIT_BYTES:
        raise InvalidArgument(f"config has more than {CONFIG_LIMIT_BYTES} bytes", field="config")


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the lm_head is the embedding."""
    return config.get("tie_word_embeddings") is True
