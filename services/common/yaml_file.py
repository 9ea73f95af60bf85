"""Files that people write in YAML, checked by a schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml.composer import ComposerError

from services.common.errors import InvalidArgument, NotFound

MAX_FILE_BYTES = 4 << 20
Document = TypeVar("Document", bound=BaseModel)
_NO_YAML = (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError)
"""The last three PyYAML lets through, of a 13th month, of `!!bool maybe`."""


class Row(BaseModel):
    """An entry of such a file; a key it does not know is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Loader(yaml.SafeLoader):
    """As YAML says, a key stands once in a mapping; PyYAML would take the last one."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # of merged mappings nothing is in it yet
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise ComposerError(
                        problem=f"{key.value[:40]!r} stands twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return node


def read_yaml(path: Path, kind: type[Document]) -> Document:
    """A YAML file checked by its schema; InvalidArgument names file, place and fault."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidArgument(f"{path.name} is over {MAX_FILE_BYTES} bytes")
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path.name} is not YAML") from error
    except OSError as error:
        raise NotFound(f"cannot read {path.name}: {error.strerror}") from error
    return parse_yaml(text, path.name, kind)


def parse_yaml(text: str, name: str, kind: type[Document]) -> Document:
    """The same of a text, which goes by this name."""
    loaded = _loaded(text, name)
    if not isinstance(loaded, dict):
        raise InvalidArgument(f"{name}:1: has no field; a mapping of fields is wanted")
    try:
        return kind.model_validate(loaded)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        where = f"{name}: {place}" if place else name
        told = fault["msg"].removeprefix("Value error, ")
        raise InvalidArgument(f"{where}: {told}", field=place) from error


def _loaded(text: str, name: str) -> object:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        told = error.problem or error.context
        raise InvalidArgument(f"{name}:{line}: is not YAML: {told}") from error
    except _NO_YAML as error:
        raise InvalidArgument(f"{name} is not YAML") from error
