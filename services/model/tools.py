"""Tools that a model may call, and calls that it made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

NO_PARAMETERS: Mapping[str, Any] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    """A JSON schema of an object; None where it takes none."""
    strict: bool = False
    """What of the schema cannot be followed is refused, not overlooked."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """What its arguments follow."""
        return NO_PARAMETERS if self.parameters is None else self.parameters

    @property
    def described(self) -> dict[str, Any]:
        """As chat templates are told of it (transformers)."""
        function: dict[str, Any] = {"name": self.name, "description": self.description}
        return {"type": "function", "function": {**function, "parameters": dict(self.schema)}}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that was made in an earlier turn."""

    id: str
    name: str
    arguments: str
    """The JSON of an object."""


class ToolChoice(StrEnum):
    """Whether tools are called."""

    AUTO = "auto"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request, and what is asked of them."""

    tools: tuple[Tool, ...]
    choice: ToolChoice = ToolChoice.AUTO
    named: str = ""
    """The one that is to be called; `choice` is REQUIRED then."""
    allowed: tuple[str, ...] = ()
    """Those that may be called, of those that the model is shown; empty: all."""
    parallel: bool = True
    """One answer may make several calls."""

    @property
    def callable(self) -> tuple[Tool, ...]:
        """Those that may be called."""
        names = (self.named,) if self.named else self.allowed
        return tuple(tool for tool in self.tools if not names or tool.name in names)

    @property
    def most_is_one(self) -> bool:
        """An answer has one call at most."""
        return bool(self.named) or not self.parallel
