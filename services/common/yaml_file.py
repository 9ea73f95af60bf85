"""Files that people write in YAML, checked by a schema."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from services.common.errors import InvalidArgument, NotFound

MAX_FILE_BYTES = 4 << 20
Document = TypeVar("Document", bound=BaseModel)


class Row(BaseModel):
    """An entry of such a file; a key it does not know is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def read_yaml(path: Path, kind: type[Document]) -> Document:
    """A YAML file checked by its schema; InvalidArgument names file, place and fault."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidArgument(f"{path.name} is over {MAX_FILE_BYTES} bytes", field=path.name)
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path.name} is not YAML", field=path.name) from error
    except OSError as error:
        raise NotFound(f"cannot read {path.name}: {error.strerror}", field=path.name) from error
    return parse_yaml(text, path.name, kind)


def parse_yaml(text: str, name: str, kind: type[Document]) -> Document:
    """The same of a text, which goes by this name."""
    try:
        return kind.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidArgument(f"{name} is not YAML", field=name) from error
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise InvalidArgument(f"{name}: {place}: {fault['msg']}", field=place) from error
