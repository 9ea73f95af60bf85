"""The special tokens that a model's files name, resolved as transformers does.

Names (`bos_token`, …) stand in tokenizer_config.json; special_tokens_map.json counts where that
file has no `added_tokens_decoder`, and added_tokens.json is of no use beside a tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken

from services.common.errors import InvalidArgument

CONFIG_FILE = "tokenizer_config.json"
MAP_FILE = "special_tokens_map.json"
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
_NAMED = tuple(f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_EXTRA = ("extra_special_tokens", "additional_special_tokens")


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """What the files beside tokenizer.json say of special tokens."""

    named: Mapping[str, AddedToken]
    """By name: `bos_token` and its like, and names of the model's own."""
    others: tuple[AddedToken, ...]
    """Special tokens without a name."""
    declared: tuple[AddedToken, ...]
    """`added_tokens_decoder`, by id."""

    @property
    def variables(self) -> dict[str, str]:
        """What a chat template finds under the tokens' names."""
        return {name: token.content for name, token in self.named.items()}


def parse_special_tokens(
    settings: Mapping[str, Any], special_map: Mapping[str, Any]
) -> SpecialTokens:
    """Reads tokenizer_config.json and special_tokens_map.json. Raises InvalidArgument."""
    declared = settings.get("added_tokens_decoder")
    if not isinstance(declared, Mapping | None):
        raise _refuse(CONFIG_FILE, "added_tokens_decoder", "must be an object")
    mapped = special_map if declared is None else {}
    _check_map(mapped)
    tokens = {
        _id(text): _token(CONFIG_FILE, "added_tokens_decoder", value)
        for text, value in (declared or {}).items()
    }
    by_text = {token.content: token for token in tokens.values()}
    named, others = _extra(CONFIG_FILE, settings, None)
    more, others = _extra(MAP_FILE, mapped, others)
    named |= more
    file, merged = MAP_FILE if mapped else CONFIG_FILE, {**settings, **mapped}
    for name, value in merged.items():
        if name in _NAMED and value is not None and not isinstance(value, str | Mapping):
            raise _refuse(file, name, "must be a text, or an object with content")
        if name.endswith("_token") and isinstance(value, str | Mapping):
            token = _token(file, name, value)
            named[name] = by_text.get(token.content, token)
    return SpecialTokens(named, tuple(others or ()), tuple(tokens[key] for key in sorted(tokens)))


def _check_map(mapped: Mapping[str, Any]) -> None:
    """transformers takes every entry of it for a setting: those of other kinds are not followed."""
    for name, value in mapped.items():
        token = name.endswith("_token") and isinstance(value, str | Mapping | None)
        if not token and name not in _EXTRA:
            raise _refuse(MAP_FILE, name, "is no special token; such settings are not read there")


def _extra(
    file: str, entries: Mapping[str, Any], others: list[AddedToken] | None
) -> tuple[dict[str, AddedToken], list[AddedToken] | None]:
    """Tokens with names of the model's own, and those without; the older spelling counts where
    nothing is under the newer."""
    named: dict[str, AddedToken] = {}
    for field in _EXTRA:
        extra = entries.get(field)
        if isinstance(extra, Mapping):
            named |= {name: _token(file, field, value) for name, value in extra.items()}
        elif isinstance(extra, list):
            if field == _EXTRA[0] or others is None:
                others = [*(others or ()), *(_token(file, field, value) for value in extra)]
        elif extra is not None:
            raise _refuse(file, field, "must be a list or an object")
        if extra:
            break
    return named, others


def _token(file: str, field: str, value: Any) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=True, normalized=False)
    content = value.get("content") if isinstance(value, Mapping) else None
    if not isinstance(content, str):
        raise _refuse(file, field, "must be a text, or an object with content")
    flags = {"special": True} | {name: value[name] for name in _FLAGS if name in value}
    if not all(type(flag) is bool for flag in flags.values()):
        raise _refuse(file, field, f"{', '.join(_FLAGS)} are true or false")
    return AddedToken(content, **flags)


def _id(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _refuse(CONFIG_FILE, "added_tokens_decoder", "names ids") from None


def _refuse(file: str, field: str, message: str) -> InvalidArgument:
    return InvalidArgument(f"{file}: {field}: {message}", field=field)
