"""The stack's template: its text, and the parameters that it has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from services.cli.ec2.files import TEMPLATE
from services.cli.mesh_directory import MeshError

MAX_BYTES = 51_200
"""Of a template that goes with the call: before the stack there is no bucket to put it in."""


class _Loader(yaml.SafeLoader):
    """Takes CloudFormation's own tags for what they are written on."""


def _untagged(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node)
    assert isinstance(node, yaml.MappingNode), "there are three kinds"
    return loader.construct_mapping(node)


_Loader.add_multi_constructor("!", _untagged)


@dataclass(frozen=True, slots=True)
class Template:
    """What CloudFormation is given."""

    body: str
    parameters: Mapping[str, Mapping[str, Any]]
    """What each may be, by its name."""

    @classmethod
    def read(cls, path: Path = TEMPLATE) -> Template:
        """Raises MeshError for one that no call takes."""
        body = path.read_text()
        if len(body.encode()) > MAX_BYTES:
            raise MeshError(f"{path} has over {MAX_BYTES} bytes")
        return cls(body, yaml.load(body, _Loader)["Parameters"])

    @property
    def defaults(self) -> dict[str, str]:
        """Of the parameters that have one."""
        found = {name: about.get("Default") for name, about in self.parameters.items()}
        return {name: str(value) for name, value in found.items() if value is not None}

    @property
    def needed(self) -> tuple[str, ...]:
        """Parameters that no default is right for."""
        return tuple(name for name, about in self.parameters.items() if "Default" not in about)

    def check(self, given: Mapping[str, str]) -> None:
        """Raises MeshError for a parameter that there is not."""
        unknown = sorted(given.keys() - self.parameters.keys())
        if unknown:
            raise MeshError(f"--parameter: the stack has no {unknown[0]}")


def parsed_parameters(pairs: Sequence[str], file: Path | None = None) -> dict[str, str]:
    """Of a file as AWS's own commands take it, and NAME=VALUE, each. Raises MeshError."""
    found = {} if file is None else _read_parameters(file)
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise MeshError(f"--parameter: {pair[:60]!r} is not NAME=VALUE")
        found[name] = value
    return found


def _read_parameters(file: Path) -> dict[str, str]:
    try:
        rows = json.loads(file.read_text())
        return {str(row["ParameterKey"]): str(row["ParameterValue"]) for row in rows}
    except OSError as error:
        raise MeshError(f"--parameters: {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise MeshError(
            f"--parameters: {file} is no list of ParameterKey and ParameterValue, as JSON"
        ) from None
