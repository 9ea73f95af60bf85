"""What can be imported: a config, the files beside the weights, and tensors read by rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from services.common.errors import InvalidArgument
from services.model.check import check_model
from services.model.config import ModelConfig, parse_config
from services.model.tensors import check_tensors
from services.tensorstore.format.dtypes import item_bytes

CONFIG_LIMIT_BYTES = 4 << 20


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


def check(checkpoint: WeightsCheckpoint) -> ModelConfig:
    """The model's config. Raises InvalidArgument unless files and tensors are a model to serve."""
    _check_config(checkpoint.config)
    check_tensors(parse_config(checkpoint.config), checkpoint.tensors)
    return check_model(checkpoint.config, checkpoint.files)  # the tokenizer may take a second


def _check_config(config: Mapping[str, Any]) -> None:
    """It becomes part of the manifest, so it must be fit for one before any weights are written."""
    try:
        text = json.dumps(dict(config), allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:  # 1e999 is read as infinity
        raise InvalidArgument(f"config: {ascii(str(error))[:120]}", field="config") from None
    if len(text) > CONFIG_LIMIT_BYTES:
        raise InvalidArgument(f"config has more than {CONFIG_LIMIT_BYTES} bytes", field="config")
