"""A Hugging Face directory: config.json, tokenizer files and (sharded) safetensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from services.common.errors import InvalidArgument
from services.model.config import parse_config
from services.model.small_files import SMALL_FILES, check_small_files
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
_TEMPLATE, _OTHER_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
_INDEX = "model.safetensors.index.json"


class HfCheckpoint:
    """Reads a directory by ranges; nothing of it is mapped, so nothing can be pulled away."""

    def __init__(self, directory: Path, within: Path | None = None) -> None:
        """Raises NotFound or InvalidArgument for a directory that is not a model, or whose links
        lead out of the one given."""
        self._within = within
        read = partial(read_file, limit_bytes=MANIFEST_LIMIT_BYTES, within=within)
        self.config: Mapping[str, Any] = _read_json(directory / "config.json", read)
        parse_config(self.config)  # said before the weights are looked at: they follow from it
        _check_templates(directory, read)
        small = _present(directory, SMALL_FILES, read)
        check_small_files(self.config, small)  # before the large ones are opened
        self.files: Mapping[str, bytes] = small | _present(directory, _OTHER_FILES, read)
        self._entries: dict[str, safetensors_file.HeaderEntry] = {}
        for shard in _shards(directory, read):
            for entry in safetensors_file.read_header(shard, within):
                if entry.name in self._entries:
                    raise InvalidArgument(f"tensor {entry.name} occurs twice", field="name")
                if not entry.name.endswith("rotary_emb.inv_freq"):  # recomputed by every engine
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
        start = entry.start + first * (entry.size_bytes // entry.shape[0])
        read_exactly(descriptor, start, into)

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def _present(
    directory: Path, names: tuple[str, ...], read: Callable[[Path], bytes]
) -> dict[str, bytes]:
    return {name: read(directory / name) for name in names if (directory / name).is_file()}


def _check_templates(directory: Path, read: Callable[[Path], bytes]) -> None:
    """Templates by other names change nothing beside a `chat_template.jinja`, but are read; without
    one, or where one of them is the default, transformers takes them for the model's."""
    paths = sorted((directory / _OTHER_TEMPLATES).glob("*.jinja"))
    names = {path.name for path in paths}
    if names and ("default.jinja" in names or not (directory / _TEMPLATE).is_file()):
        raise InvalidArgument(
            f"{_OTHER_TEMPLATES}: the default template must be {_TEMPLATE}", field=_OTHER_TEMPLATES
        )
    for path in paths:
        try:
            read(path).decode()
        except UnicodeDecodeError:
            raise InvalidArgument(
                f"{_OTHER_TEMPLATES}/{path.name}: is not UTF-8", field=_OTHER_TEMPLATES
            ) from None


def _shards(directory: Path, read: Callable[[Path], bytes]) -> list[Path]:
    index = directory / _INDEX
    if not index.is_file():
        found = sorted(directory.glob("*.safetensors"))
        if not found:
            raise InvalidArgument("the directory holds no *.safetensors", field="source")
        return found
    weight_map = _read_json(index, read).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidArgument(f"{_INDEX} has no weight_map", field="weight_map")
    names = {check_file_name(name) for name in weight_map.values()}
    shards = [directory / name for name in sorted(names)]
    for shard in shards:
        if not shard.is_file():
            raise InvalidArgument(f"shard {shard.name} is missing", field="weight_map")
    return shards


def _read_json(path: Path, read: Callable[[Path], bytes]) -> dict[str, Any]:
    try:
        return load_json(read(path), MANIFEST_LIMIT_BYTES)
    except InvalidArgument as error:
        if error.field:
            raise
        raise InvalidArgument(f"{path.name}: {error.message}", field=path.name) from None
