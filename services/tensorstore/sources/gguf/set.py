"""A GGUF model in one file, or in the files it was split into: `NAME-00001-of-00003.gguf`, …"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.common.errors import InvalidArgument
from services.tensorstore.sources.gguf.file import GgufHeader, GgufTensor, read_header

MAX_PARTS = 512
_NO, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.ASCII | re.DOTALL)


@dataclass(frozen=True)
class GgufSet:
    """All parts in their order; the first one's metadata are the model's."""

    paths: tuple[Path, ...]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    part_of: Mapping[str, int]
    """The part that holds a tensor."""


def read_set(path: Path, within: Path | None = None) -> GgufSet:
    """The model that a file is, or is a part of; raises InvalidArgument, too, for a part whose
    others are not beside it."""
    header = read_header(path, within)
    paths = _paths(path, header)
    headers = [header if part == path else read_header(part, within) for part in paths]
    tensors: dict[str, GgufTensor] = {}
    part_of: dict[str, int] = {}
    for number, (part, found) in enumerate(zip(paths, headers, strict=True)):
        if len(paths) > 1:
            _check_part(part, found, number, headers)
        for name, tensor in found.tensors.items():
            if name in tensors:
                other = paths[part_of[name]].name
                raise InvalidArgument(
                    f"{part.name}: tensor {ascii(name)[:80]} is in {other}, too",
                    field="tensors",
                )
            tensors[name], part_of[name] = tensor, number
    declared = headers[0].metadata.get(_TENSORS)
    if declared not in (None, len(tensors)):
        raise InvalidArgument(
            f"{paths[0].name}: {_TENSORS}: says {ascii(declared)[:20]}, the"
            f" {len(paths)} of the set hold {len(tensors)}",
            field=_TENSORS,
        )
    return GgufSet(tuple(paths), headers[0].metadata, tensors, part_of)


def sets_in(directory: Path) -> list[Path]:
    """One file of each model that a directory holds as GGUF files, in the order of names."""
    found: dict[str, Path] = {}
    for path in sorted(directory.glob("*.gguf")):
        match = _PART.fullmatch(path.name)
        found.setdefault(f"{match[1]}-of-{match[3]}" if match else path.name, path)
    return list(found.values())


def _paths(path: Path, header: GgufHeader) -> list[Path]:
    """Where all parts should be."""
    count, number = header.metadata.get(_COUNT), header.metadata.get(_NO, 0)
    match = _PART.fullmatch(path.name)
    if count is None:
        if _NO in header.metadata or _TENSORS in header.metadata or (match and int(match[3]) > 1):
            raise InvalidArgument(
                f"{path.name}: {_COUNT}: is missing, and the file seems to be one part of several",
                field=_COUNT,
            )
        return [path]
    if type(count) is not int or not 1 <= count <= MAX_PARTS:
        raise InvalidArgument(
            f"{path.name}: {_COUNT}: must be an integer from 1 to {MAX_PARTS}", field=_COUNT
        )
    if type(number) is not int or not 0 <= number < count:
        raise InvalidArgument(
            f"{path.name}: {_NO}: must be an integer from 0 to {count - 1}", field=_NO
        )
    if count == 1:
        return [path]
    if match is None or int(match[3]) != count or int(match[2]) != number + 1:
        raise InvalidArgument(
            f"{path.name}: {_COUNT}: it is part {number + 1} of {count}, and would be called"
            f" NAME-{number + 1:05d}-of-{count:05d}.gguf",
            field=_COUNT,
        )
    paths = [path.with_name(f"{match[1]}-{n + 1:05d}-of-{count:05d}.gguf") for n in range(count)]
    for part in paths:
        if not part.is_file():
            raise InvalidArgument(
                f"{path.name} is part {number + 1} of {count}, and {part.name} is not beside it",
                field=_COUNT,
            )
    return paths


def _check_part(path: Path, header: GgufHeader, number: int, headers: Sequence[GgufHeader]) -> None:
    """Whether a part is the one its name says, of the same model as the first."""
    for key, wanted in ((_COUNT, len(headers)), (_NO, number)):
        if header.metadata.get(key) != wanted:
            raise InvalidArgument(f"{path.name}: {key}: must be {wanted}", field=key)
    first = headers[0].metadata
    for key, value in header.metadata.items():
        if key != _NO and (key not in first or first[key] != value):
            raise InvalidArgument(
                f"{path.name}: {ascii(key)[:120]}: is not what the first part says", field=key[:120]
            )
