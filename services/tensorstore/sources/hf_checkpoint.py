"""A Hugging Face directory: config.json, tokenizer files and (sharded) safetensors.

Where there is an index, its tensors are where it says; files that it does not name are not read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from services.common.errors import InvalidArgument
from services.model.backends import NATIVE, backends_of, check_served
from services.model.config import parse_config
from services.model.small_files import SMALL_FILES, check_small_files
from services.model.tensors import fused_rows
from services.tensorstore.format.manifest import MANIFEST_LIMIT_BYTES, load_json
from services.tensorstore.format.names import check_file_name
from services.tensorstore.sources import safetensors_file
from services.tensorstore.sources.checkpoint import SourceTensor
from services.tensorstore.sources.source_file import open_file, read_exactly, read_file

_OTHER_FILES = (
    "tokenizer.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
_TEMPLATE, OTHER_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
SUFFIX = ".safetensors"
_RECOMPUTED = "rotary_emb.inv_freq"
"""How the names of tensors end that every engine computes anew."""
_NAME_CHARS = 120
FILES = ("config.json", *SMALL_FILES, *_OTHER_FILES)
"""The files beside the weights that are read."""


class HfCheckpoint:
    """Reads a directory by ranges; nothing of it is mapped, so nothing can be pulled away."""

    def __init__(self, directory: Path, within: Path | None = None) -> None:
        """Raises NotFound or InvalidArgument for a directory that is not a model, or whose links
        lead out of the one given."""
        self._within = within
        read = _reader(within)
        self.config, small = _checked(directory, read)
        self.files: Mapping[str, bytes] = small | _present(directory, _OTHER_FILES, read)
        index = _index(directory, read)
        self._entries: dict[str, safetensors_file.HeaderEntry] = {}
        whole: dict[str, safetensors_file.HeaderEntry] = {}
        for name in _shards(directory, index):
            for entry in safetensors_file.read_header(directory / name, within):
                _check_once(entry, whole.get(entry.name), index)
                whole[entry.name] = entry
        for tensor, name in index.items():
            if tensor not in whole:
                raise InvalidArgument(
                    f"tensor {tensor[:_NAME_CHARS]} is missing: {INDEX} has it in {name}",
                    field=tensor[:_NAME_CHARS],
                )
        fused = _fused(self.config)
        for entry in (part for each in whole.values() for part in _parts(each, fused)):
            if not entry.name.endswith(_RECOMPUTED):
                _check_once(entry, self._entries.get(entry.name), {})
                self._entries[entry.name] = entry
        self.tensors: Mapping[str, SourceTensor] = {
            name: SourceTensor(name, entry.dtype, entry.shape)
            for name, entry in self._entries.items()
        }
        self._descriptors: dict[Path, int] = {}

    def read_rows(self, name: str, first: int, last: int, into: memoryview) -> None:
        entry = self._entries[name]
        descriptor = self._descriptors.get(entry.path)
        if descriptor is None:
            descriptor = open_file(entry.path, self._within)
            self._descriptors[entry.path] = descriptor
        start = entry.start + first * self.tensors[name].row_bytes
        read_exactly(descriptor, start, into)

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def check_small(directory: Path) -> None:
    """Raises what a checkpoint of these files would be refused for, before there are weights."""
    _checked(directory, _reader(None))


def weight_files(directory: Path, names: Collection[str]) -> list[str]:
    """Which of a model's files hold the weights that are read, by its index where there is one."""
    index = _index(directory, _reader(None))
    if index:
        return sorted(set(index.values()))
    return [_SINGLE] if _SINGLE in names else sorted(n for n in names if n.endswith(SUFFIX))


def _reader(within: Path | None) -> Callable[[Path], bytes]:
    return partial(read_file, limit_bytes=MANIFEST_LIMIT_BYTES, within=within)


def _checked(
    directory: Path, read: Callable[[Path], bytes]
) -> tuple[Mapping[str, Any], dict[str, bytes]]:
    """The config and the small files, each looked at before anything larger is opened."""
    config = _read_json(directory / "config.json", read)
    check_served(config)  # said before the weights are looked at: they follow from it
    _check_templates(directory, read)
    small = _present(directory, SMALL_FILES, read)
    check_small_files(config, small)
    return config, small


def _check_once(
    entry: safetensors_file.HeaderEntry,
    before: safetensors_file.HeaderEntry | None,
    index: Mapping[str, str],
) -> None:
    name, file = entry.name, entry.path.name
    if before is not None:
        raise InvalidArgument(
            f"tensor {name} occurs twice: in {before.path.name} and in {file}", field="name"
        )
    if index.get(name, file) != file:
        raise InvalidArgument(
            f"tensor {name} is in {file}, {INDEX} has it in {index[name]}", field="name"
        )


def _fused(config: Mapping[str, Any]) -> Mapping[str, Mapping[str, int]]:
    """Of a model that is stored in tiles; another one's tensors are kept as they are."""
    native = NATIVE in backends_of(config).names
    return fused_rows(parse_config(config)) if native else {}


def _parts(
    entry: safetensors_file.HeaderEntry, fused: Mapping[str, Mapping[str, int]]
) -> Iterator[safetensors_file.HeaderEntry]:
    """A tensor, or those that it is made of, row behind row; the store keeps them apart, for each
    is cut for tensor parallelism by itself."""
    parts = fused.get(entry.name)
    if parts is None:
        yield entry
        return
    if not entry.shape or entry.shape[0] != sum(parts.values()):
        raise InvalidArgument(
            f"tensor {entry.name} has shape {list(entry.shape)[:8]}, config.json asks for"
            f" {sum(parts.values())} rows",
            field=entry.name,
        )
    row_bytes, start = entry.size_bytes // entry.shape[0], entry.start
    for name, rows in parts.items():
        shape, size_bytes = (rows, *entry.shape[1:]), rows * row_bytes
        yield replace(entry, name=name, shape=shape, start=start, size_bytes=size_bytes)
        start += size_bytes


def _present(
    directory: Path, names: tuple[str, ...], read: Callable[[Path], bytes]
) -> dict[str, bytes]:
    return {name: read(directory / name) for name in names if (directory / name).is_file()}


def _check_templates(directory: Path, read: Callable[[Path], bytes]) -> None:
    """Templates by other names change nothing beside a `chat_template.jinja`, but are read; without
    one, or where one of them is the default, transformers takes them for the model's."""
    paths = sorted((directory / OTHER_TEMPLATES).glob("*.jinja"))
    names = {path.name for path in paths}
    if names and ("default.jinja" in names or not (directory / _TEMPLATE).is_file()):
        raise InvalidArgument(
            f"{OTHER_TEMPLATES}: the default template must be {_TEMPLATE}", field=OTHER_TEMPLATES
        )
    for path in paths:
        try:
            read(path).decode()
        except UnicodeDecodeError:
            raise InvalidArgument(
                f"{OTHER_TEMPLATES}/{path.name}: is not UTF-8", field=OTHER_TEMPLATES
            ) from None


def _index(directory: Path, read: Callable[[Path], bytes]) -> dict[str, str]:
    """Which file each tensor is in; empty where there is no index."""
    path = directory / INDEX
    if not path.is_file():
        return {}
    weight_map = _read_json(path, read).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidArgument(f"{INDEX} has no weight_map", field="weight_map")
    return {name: check_file_name(file) for name, file in weight_map.items()}


def _shards(directory: Path, index: Mapping[str, str]) -> list[str]:
    if not index:
        found = sorted(path.name for path in directory.glob(f"*{SUFFIX}"))
        if not found:
            raise InvalidArgument(f"the directory holds no *{SUFFIX}", field="source")
        return found
    shards = sorted(set(index.values()))
    for shard in shards:
        if not (directory / shard).is_file():
            raise InvalidArgument(f"shard {shard} is missing", field="weight_map")
    return shards


def _read_json(path: Path, read: Callable[[Path], bytes]) -> dict[str, Any]:
    try:
        return load_json(read(path), MANIFEST_LIMIT_BYTES)
    except InvalidArgument as error:
        if error.field:
            raise
        raise InvalidArgument(f"{path.name}: {error.message}", field=path.name) from None
