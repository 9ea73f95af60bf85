"""A GGUF file's key-value pairs: what nobody honours and nobody knows to be harmless is refused."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from services.common.errors import InvalidArgument

SIZE_LIMIT = 1 << 24
_NOTES = (  # who made it, when, from what: no reader computes with these
    "general.author",
    "general.base_model.",
    "general.basename",
    "general.dataset.",
    "general.datasets",
    "general.description",
    "general.doi",
    "general.file_type",
    "general.finetune",
    "general.languages",
    "general.license",
    "general.name",
    "general.organization",
    "general.parameter_count",
    "general.quantized_by",
    "general.repo_url",
    "general.sampling.",  # a request says how it is sampled
    "general.size_label",
    "general.source.",
    "general.tags",
    "general.url",
    "general.uuid",
    "general.version",
    "mradermacher.",
    "quantize.imatrix.",
)
_SET = frozenset(
    {"general.alignment", "split.no", "split.count", "split.tensors.count"}
)  # honoured where the files are laid out


def refuse(key: str, message: str) -> InvalidArgument:
    """What is wrong with a key, as an error to raise."""
    return InvalidArgument(f"{key}: {message}", field=key)


class Metadata:
    """Every read marks its key as honoured; `refuse_rest` names a key that is left over.

    A read of a key with a value of another type, or out of range, raises InvalidArgument.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._left = set(values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def take(self, key: str) -> Any:
        """The raw value, None where the file has none."""
        self._left.discard(key)
        return self._values.get(key)

    def size(self, key: str, default: int | None = None, limit: int = SIZE_LIMIT) -> int:
        """A positive integer."""
        value = self._given(key, default)
        if type(value) is not int or not 1 <= value <= limit:
            raise refuse(key, f"must be an integer from 1 to {limit}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number, as short a decimal as its float32 allows."""
        value = self._given(key, default)
        if type(value) not in (int, float) or not 1e-30 < value < 1e30:
            raise refuse(key, "must be a positive number")
        return float(str(np.float32(value)))

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self._given(key, default)
        if not isinstance(value, bool):
            raise refuse(key, "must be true or false")
        return value

    def text(self, key: str) -> str | None:
        """A string, None where the file has none."""
        value = self.take(key)
        if value is not None and not isinstance(value, str):
            raise refuse(key, "must be a string")
        return value

    def strings(self, key: str) -> list[str] | None:
        """A list of strings, None where the file has none."""
        value = self.take(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise refuse(key, "must be a list of strings")
        return value

    def numbers(self, key: str, count: int) -> list[Any]:
        """A list of so many finite numbers."""
        value = self._given(key, None)
        if not isinstance(value, list) or len(value) != count:
            raise refuse(key, f"must be a list of {count} numbers, one a token")
        if not all(type(item) in (int, float) and math.isfinite(item) for item in value):
            raise refuse(key, "must be finite numbers")
        return value

    def index(self, key: str, below: int) -> int | None:
        """An integer from 0 to below a bound, None where the file has none."""
        value = self.take(key)
        if value is not None and (type(value) is not int or not 0 <= value < below):
            raise refuse(key, f"must be an integer from 0 to {below - 1}")
        return value

    def neutral(self, key: str, values: Collection[Any]) -> None:
        """Raises InvalidArgument unless the key is absent or says one of these, which change
        nothing."""
        value = self.take(key)
        if value is None:
            return
        if not any(type(value) is type(same) and value == same for same in values):
            raise refuse(key, f"{ascii(value)[:40]} is not supported")

    def refuse_rest(self) -> None:
        """Raises InvalidArgument if a key is left that is neither honoured nor a mere note."""
        for key in sorted(self._left - _SET):
            if not key.startswith(_NOTES):
                raise InvalidArgument(
                    f"{ascii(key)[:120]}: no such key is known to be harmless", field=key[:120]
                )

    def _given(self, key: str, default: Any) -> Any:
        value = self.take(key)
        if value is None:
            value = default
        if value is None:
            raise refuse(key, "is missing")
        return value
