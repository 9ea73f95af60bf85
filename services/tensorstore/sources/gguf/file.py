"""A strict reader of GGUF (version 2 and 3, little-endian): metadata and tensor places."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from services.common.errors import InvalidArgument
from services.tensorstore.format.manifest import MAX_RANK, MAX_TENSORS
from services.tensorstore.places.directory import translate
from services.tensorstore.sources.source_file import open_file

METADATA_LIMIT_BYTES = 256 << 20
MAX_KEYS = 4096
MAX_ITEMS = 1 << 22
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """A tensor's place; shape in the usual order (rows first), start from the file's beginning."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    size_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Everything before the data."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_header(path: Path, within: Path | None = None) -> GgufHeader:
    """The header of a file; raises InvalidArgument for a malformed one."""
    descriptor = open_file(path, within)
    try:
        with os.fdopen(descriptor, "rb") as file:
            return _Parser(file).header()
    except OSError as error:
        raise translate(error) from None
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
        raise InvalidArgument(f"{path.name}: {ascii(str(error))[:80]}", field="header") from None
    except InvalidArgument as error:
        raise InvalidArgument(f"{path.name}: {error.message}", field=error.field) from None


class _Parser:
    """Takes a header piece by piece, so that no more of the file is in memory than it says."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._file_bytes = os.fstat(file.fileno()).st_size
        self._limit_bytes = min(self._file_bytes, METADATA_LIMIT_BYTES)
        self._at = 0

    def header(self) -> GgufHeader:
        self._check_kind()
        tensor_count = self._count(MAX_TENSORS, "tensors")
        key_count = self._count(MAX_KEYS, "keys")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._string()
            if key in metadata:
                raise InvalidArgument(f"{ascii(key)[:120]}: occurs twice", field=key[:120])
            metadata[key] = self._value_of(key)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment % 8:
            raise InvalidArgument("alignment must be a multiple of 8", field="general.alignment")
        infos = [self._info() for _ in range(tensor_count)]
        base = -(-self._at // alignment) * alignment
        return GgufHeader(metadata, self._place(infos, base, alignment))

    def _check_kind(self) -> None:
        if not self._file_bytes:
            raise InvalidArgument("the file is empty", field="magic")
        if self._take(4) != b"GGUF":
            raise InvalidArgument("not a GGUF file", field="magic")
        version = self._number("<I")
        if version and version & 0xFFFF == 0:
            raise InvalidArgument(
                "a big-endian GGUF file, and only little-endian ones are read:"
                " convert it with gguf_convert_endian.py",
                field="version",
            )
        if version not in (2, 3):
            raise InvalidArgument(
                f"GGUF version {version} is not 2 or 3: convert the model anew", field="version"
            )

    def _value_of(self, key: str) -> Any:
        try:
            return self._value(self._number("<I"))
        except UnicodeDecodeError:
            raise InvalidArgument(f"{ascii(key)[:120]}: not UTF-8", field=key[:120]) from None

    def _place(
        self,
        infos: list[tuple[str, tuple[int, ...], GGMLQuantizationType, int]],
        base: int,
        alignment: int,
    ) -> dict[str, GgufTensor]:
        found: dict[str, GgufTensor] = {}
        end = 0
        for name, shape, kind, offset in sorted(infos, key=lambda info: info[3]):
            if name in found:
                raise InvalidArgument("a tensor name occurs twice", field="name")
            block, block_bytes = GGML_QUANT_SIZES[kind]
            elements = 1
            for extent in shape:
                elements *= extent
            if shape[-1] % block or elements > 1 << 46:
                raise InvalidArgument(f"shape {list(shape)} is not made of blocks", field="shape")
            size = elements // block * block_bytes
            if offset != -(-end // alignment) * alignment:
                raise InvalidArgument("tensors overlap or leave a hole", field="offset")
            end = offset + size
            found[name] = GgufTensor(name, kind, shape, base + offset, size)
        last = -(-end // alignment) * alignment  # writers may pad behind the last tensor
        first = base + end if infos else self._at  # and need not pad before none at all
        if self._file_bytes not in range(first, base + last + 1):
            raise InvalidArgument(
                f"file of {self._file_bytes} bytes, its tensors end at {base + end}", field="size"
            )
        return found

    def _info(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name, rank = self._string(), self._number("<I")
        if not 1 <= rank <= MAX_RANK:
            raise InvalidArgument(f"rank {rank} is not 1 to {MAX_RANK}", field="shape")
        shape = tuple(self._number("<Q") for _ in range(rank))[::-1]
        if not all(1 <= extent < 1 << 46 for extent in shape):
            raise InvalidArgument("extents must be positive", field="shape")
        number, offset = self._number("<I"), self._number("<Q")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise InvalidArgument(f"tensor type {number} is unknown", field="type") from None
        return name, shape, kind, offset

    def _take(self, size: int) -> bytes:
        data = self._file.read(size) if size <= self._limit_bytes - self._at else b""
        if len(data) != size:
            raise InvalidArgument("the header ends too early", field="header")
        self._at += size
        return data

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _count(self, limit: int, what: str) -> int:
        count = int(self._number("<Q"))
        if count > limit:
            raise InvalidArgument(f"{count} {what}, allowed are {limit}", field=what)
        return count

    def _string(self) -> str:
        return self._take(self._number("<Q")).decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, count = self._number("<I"), self._count(MAX_ITEMS, "items")
            if inner == _ARRAY:
                raise InvalidArgument("arrays of arrays are not used", field="metadata")
            if inner in _SCALARS:
                one = _SCALARS[inner]
                many = f"<{count}{one[1]}"
                return list(struct.unpack(many, self._take(count * struct.calcsize(one))))
            return [self._value(inner) for _ in range(count)]
        if kind not in _SCALARS:
            raise InvalidArgument(f"value type {kind} is unknown", field="metadata")
        return self._number(_SCALARS[kind])
