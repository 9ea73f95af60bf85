"""What can be imported: a config, the files beside the weights, and tensors read by rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from services.common.errors import InvalidArgument
from services.model.backends import NATIVE, check_served
from services.model.check import check_model
from services.model.config import parse_config
from services.model.outline import ModelOutline, outline_of
from services.model.tensors import QUANTISED, check_tensors
from services.model.whole import check_whole, is_tied
from services.tensorstore.format.dtypes import WEIGHTS, item_bytes

CONFIG_LIMIT_BYTES = 4 << 20
ORIGIN_FILE = "origin.json"
"""A file that an import keeps beside the weights: where they came from."""


@dataclass(frozen=True)
class SourceTensor:
    """A tensor as the store will keep it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Steps along the first axis; a single number is one."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one step along the first axis."""
        size = item_bytes(self.dtype)
        for extent in self.shape[1:]:
            size *= extent
        return size

    @property
    def size_bytes(self) -> int:
        return self.row_bytes * self.rows


class WeightsCheckpoint(Protocol):
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


@dataclass(frozen=True, slots=True)
class Checked:
    """A checkpoint that can be served, and how its tensors are kept."""

    outline: ModelOutline
    tied: bool
    tiled: bool
    """Whether they are cut for tensor parallelism; else each is kept whole."""


def check(checkpoint: WeightsCheckpoint) -> Checked:
    """Raises InvalidArgument unless files and tensors are a model that a backend can serve."""
    config, tensors = checkpoint.config, checkpoint.tensors
    _check_config(config)
    tiled = NATIVE in check_served(config).names
    outline = outline_of(config)
    if tiled:
        for name, tensor in tensors.items():
            _check_dtype(name, tensor.dtype)
        check_tensors(parse_config(config), tensors)
    else:
        check_whole(config, outline, tensors)
    check_model(config, checkpoint.files)  # the tokenizer may take a second
    return Checked(outline, is_tied(outline, tensors), tiled)


def _check_dtype(name: str, dtype: str) -> None:
    if dtype in WEIGHTS:
        return
    quantised = name.endswith(QUANTISED) or dtype.startswith(("I", "U"))
    raise InvalidArgument(
        f"dtype {dtype} of {name} is not one of {', '.join(WEIGHTS)}"
        + (
            ": quantised weights (GPTQ, AWQ and the like) need a quantization_config in config.json"
            if quantised
            else ""
        ),
        field="dtype",
    )


def _check_config(config: Mapping[str, Any]) -> None:
    """It becomes part of the manifest, so it must be fit for one before any weights are written."""
    try:
        text = json.dumps(dict(config), allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:  # 1e999 is read as infinity
        raise InvalidArgument(f"config: {ascii(str(error))[:120]}", field="config") from None
    if len(text) > CONFIG_LIMIT_BYTES:
        raise InvalidArgument(f"config has more than {CONFIG_LIMIT_BYTES} bytes", field="config")
