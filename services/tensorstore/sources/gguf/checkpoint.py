"""A GGUF model as a checkpoint: dequantised to bf16, names and head order as Hugging Face's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from services.common.errors import InvalidArgument
from services.model.check import check_model
from services.model.config import parse_config
from services.tensorstore.sources.checkpoint import SourceTensor
from services.tensorstore.sources.gguf import config as gguf_config
from services.tensorstore.sources.gguf import set as gguf_set
from services.tensorstore.sources.gguf import tensors as gguf_tensors
from services.tensorstore.sources.gguf import tokenizer as gguf_tokenizer
from services.tensorstore.sources.gguf.file import GgufTensor
from services.tensorstore.sources.gguf.metadata import Metadata
from services.tensorstore.sources.gguf.tensors import TOKEN_EMBEDDING, Expected
from services.tensorstore.sources.source_file import open_file, read_exactly

_STEP_BYTES = 1 << 20  # as float32; rounding holds a few times that


class GgufCheckpoint:
    """Reads and dequantises by rows."""

    config: Mapping[str, Any]
    files: Mapping[str, bytes]

    def __init__(self, path: Path, within: Path | None = None) -> None:
        """Raises InvalidArgument naming file and key for a malformed file, another family of
        models, metadata that would change an answer and are not understood, or a link that leads
        out of the directory given. A part of a split file stands for all of them."""
        self._set = gguf_set.read_set(path, within)
        self._descriptors: list[int] = []
        try:
            self._descriptors += [open_file(part, within) for part in self._set.paths]
            self._expected = self._understood()
        except InvalidArgument as error:
            self.close()
            raise InvalidArgument(f"{path.name}: {error.message}", field=error.field) from None
        except BaseException:
            self.close()
            raise
        self.tensors: Mapping[str, SourceTensor] = {
            name: SourceTensor(name, "BF16", tensor.shape)
            for name, tensor in self._expected.items()
        }

    def _understood(self) -> dict[str, Expected]:
        """Reads all metadata; answers where the model's tensors are, by their names."""
        tensors, metadata = self._set.tensors, Metadata(self._set.metadata)
        family = gguf_config.family_of(metadata)
        for tensor in tensors.values():
            _check_kind(tensor)
        embedding = tensors.get(TOKEN_EMBEDDING)
        if embedding is None or len(embedding.shape) != 2:
            raise InvalidArgument(f"tensor {TOKEN_EMBEDDING} is missing", field="tensors")
        factors = {
            name: self._values(tensors[name])
            for name in gguf_tensors.rope_tensors(family)
            if name in tensors
        }
        config = gguf_config.config_of(
            metadata, family, embedding.shape[0], factors
        ) | gguf_tensors.flags_of(family, tensors)
        tokenizer = gguf_tokenizer.read(
            metadata, config["vocab_size"], gemma=family.gemma is not None
        )
        metadata.refuse_rest()
        self.config, self.files = config | tokenizer.ids, tokenizer.files
        check_model(self.config, self.files)
        model = parse_config(self.config)
        expected = gguf_tensors.expected(family, model, tensors)
        shapes: dict[str, tuple[int, ...]] = {}
        for wanted in expected.values():
            rows, *columns = wanted.shape
            shapes[wanted.name] = (wanted.first_row + rows, *columns)
        for name, shape in shapes.items():
            if tensors[name].shape != shape:
                raise InvalidArgument(
                    f"tensor {name} of shape {list(tensors[name].shape)} must be {list(shape)}",
                    field="shape",
                )
        return expected

    def read_rows(self, name: str, first: int, last: int, into: memoryview) -> None:
        wanted = self._expected[name]
        source, heads = self._set.tensors[wanted.name], wanted.heads
        first, last = first + wanted.first_row, last + wanted.first_row
        out = np.frombuffer(into, dtype=np.uint16).reshape(last - first, -1)
        head_rows = source.shape[0] // heads if heads else 0
        step = head_rows or max(1, _STEP_BYTES // (out.shape[1] * 4))
        row = first
        while row < last:
            if heads:  # whole ones, for their rows come in another order
                start = row // step * step
                rows = _reordered(self._bf16(source, start, start + step))
            else:
                start = row
                rows = self._bf16(source, row, min(row + step, last), wanted.offset)
            stop = min(start + len(rows), last)
            out[row - first : stop - first] = rows[row - start : stop - start]
            row = stop

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _values(self, vector: GgufTensor) -> Any:
        """A small tensor of one dimension, float32."""
        if vector.kind != GGMLQuantizationType.F32 or len(vector.shape) != 1:
            raise InvalidArgument(f"{vector.name} must be a vector of F32", field=vector.name)
        if vector.size_bytes > _STEP_BYTES:
            raise InvalidArgument(f"{vector.name} is too long", field=vector.name)
        return np.frombuffer(self._raw(vector, 0, vector.shape[0]), np.float32)

    def _raw(self, source: GgufTensor, first: int, last: int) -> bytearray:
        row_bytes = source.size_bytes // source.shape[0]
        raw = bytearray((last - first) * row_bytes)
        descriptor = self._descriptors[self._set.part_of[source.name]]
        read_exactly(descriptor, source.start + first * row_bytes, memoryview(raw))
        return raw

    def _bf16(self, source: GgufTensor, first: int, last: int, offset: float = 0.0) -> Any:
        """Rows less an offset as bf16 bit patterns, [rows, columns]."""
        raw = self._raw(source, first, last)
        blocks = np.frombuffer(raw, dtype=np.uint8).reshape(last - first, -1)
        with np.errstate(invalid="ignore", over="ignore"):  # what is not a number stays so
            if source.kind.name in ("F32", "F16"):
                dtype = np.float32 if source.kind.name == "F32" else np.float16
                values = blocks.view(dtype).astype(np.float32)
            else:
                values = dequantize(blocks, source.kind)
            return round_to_bf16(values - np.float32(offset) if offset else values)


def round_to_bf16(values: Any) -> Any:
    """float32 to bf16 bit patterns (uint16), to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def _check_kind(tensor: GgufTensor) -> None:
    """Rows are read one by one, so each must be whole blocks, of a kind that can be read."""
    block, _ = GGML_QUANT_SIZES[tensor.kind]
    if len(tensor.shape) == 1 and block > 1:
        raise InvalidArgument(f"{tensor.name} is a vector of type {tensor.kind.name}", field="type")
    if not _is_readable(tensor.kind):
        raise InvalidArgument(
            f"tensor {ascii(tensor.name)[:80]} of type {tensor.kind.name} cannot be read",
            field="type",
        )


@cache
def _is_readable(kind: GGMLQuantizationType) -> bool:
    """Whether the library can dequantise this kind."""
    _, block_bytes = GGML_QUANT_SIZES[kind]
    try:
        dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except (NotImplementedError, ValueError):
        return False
    return True


def _reordered(rows: Any) -> Any:
    """One head's rows in Hugging Face's order: [a0, b0, a1, b1, …] to [a0, a1, …, b0, b1, …]."""
    return rows.reshape(len(rows) // 2, 2, -1).swapaxes(0, 1).reshape(len(rows), -1)
