"""A strict reader of safetensors files: one header, every byte of the file accounted for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import InvalidArgument
from services.tensorstore.format.dtypes import ITEM_BYTES
from services.tensorstore.format.manifest import MAX_RANK, MAX_TENSORS, load_json
from services.tensorstore.format.names import is_tensor_name
from services.tensorstore.sources.source_file import open_file, read_exactly

HEADER_LIMIT_BYTES = 100_000_000


@dataclass(frozen=True)
class HeaderEntry:
    """One tensor of a file; start counts from the file's beginning."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


def read_header(path: Path, within: Path | None = None) -> list[HeaderEntry]:
    """The tensors of a file, in file order; raises InvalidArgument for a malformed one."""
    descriptor = open_file(path, within)
    try:
        return _read_header(path, descriptor)
    except InvalidArgument as error:
        raise InvalidArgument(f"{path.name}: {error.message}", field=error.field) from None
    finally:
        os.close(descriptor)


def _read_header(path: Path, descriptor: int) -> list[HeaderEntry]:
    file_bytes = os.fstat(descriptor).st_size
    if not file_bytes:
        raise InvalidArgument("the file is empty", field="header")
    if file_bytes < 8:
        raise InvalidArgument(f"{file_bytes} bytes are no safetensors file", field="header")
    first = bytearray(8)
    read_exactly(descriptor, 0, memoryview(first))
    header_bytes = int.from_bytes(first, "little")
    if header_bytes > HEADER_LIMIT_BYTES or 8 + header_bytes > file_bytes:
        raise InvalidArgument(
            f"header of {header_bytes} bytes in a file of {file_bytes}", field="header"
        )
    text = bytearray(header_bytes)
    read_exactly(descriptor, 8, memoryview(text))
    header = load_json(bytes(text), HEADER_LIMIT_BYTES)
    header.pop("__metadata__", None)
    if not 1 <= len(header) <= MAX_TENSORS:
        raise InvalidArgument(f"{len(header)} tensors, allowed are 1 to {MAX_TENSORS}")
    base = 8 + header_bytes
    found = sorted(
        (_entry(path, name, value, base) for name, value in header.items()),
        key=lambda entry: entry.start,
    )
    end = base
    for entry in found:
        if entry.start != end:
            raise InvalidArgument("tensors overlap or leave a hole", field="data_offsets")
        end = entry.start + entry.size_bytes
    if end != file_bytes:
        raise InvalidArgument(
            f"file of {file_bytes} bytes, its tensors end at {end}", field="data_offsets"
        )
    return found


def _entry(path: Path, name: str, value: object, base: int) -> HeaderEntry:
    if not is_tensor_name(name):
        raise InvalidArgument(f"tensor name {ascii(name)[:80]} is not allowed", field="name")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidArgument("a tensor needs dtype, shape, data_offsets alone", field="tensor")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        kept = ", ".join(ITEM_BYTES)
        raise InvalidArgument(
            f"dtype {ascii(dtype)[:20]} of {name} is not one of {kept}", field="dtype"
        )
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise InvalidArgument(f"{name} must have up to {MAX_RANK} dimensions", field="shape")
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise InvalidArgument("data_offsets must be two integers", field="data_offsets")
    size = ITEM_BYTES[dtype]
    for number in (*shape, *offsets):
        if type(number) is not int or not 0 <= number < 1 << 62:
            raise InvalidArgument(f"{name}: not a sane integer", field="shape")
    for extent in shape:
        if extent == 0:
            raise InvalidArgument(f"{name} is empty", field="shape")
        size *= extent
    if offsets[1] - offsets[0] != size:
        raise InvalidArgument(
            f"{name}: {offsets[1] - offsets[0]} bytes for a shape of {size}", field="data_offsets"
        )
    return HeaderEntry(path, name, dtype, tuple(shape), base + offsets[0], size)
