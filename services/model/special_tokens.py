"""The special tokens that a model's files name, resolved as transformers does.

Names (`bos_token`, …) stand in tokenizer_config.json; special_tokens_map.json counts where that
file has no `added_tokens_decoder`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import AddedToken

from services.common.errors import InvalidArgument
from services.model.tokenizer_settings import CONFIG_FILE

MAP_FILE = "special_tokens_map.json"
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
_NAMED = tuple(f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
PAD = "pad_token"
_ADDS = ("add_bos_token", "add_eos_token")
_TYPE = "AddedToken"
_EXTRA = ("extra_special_tokens", "additional_special_tokens")


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """What the files beside tokenizer.json say of special tokens."""

    named: Mapping[str, AddedToken]
    """By name: `bos_token` and its like, and names of the model's own."""
    others: tuple[AddedToken, ...]
    """Special tokens without a name."""
    declared: Mapping[int, AddedToken] | None
    """`added_tokens_decoder`; None where tokenizer.json's own added tokens stand for it."""

    said: Collection[str] = ()
    """Every name that is spoken of, be it as null."""

    def naming(self, name: str, text: str) -> SpecialTokens:
        """The same, and one more that has a name."""
        token = AddedToken(text, special=True, normalized=False)
        return replace(self, named=_ordered({**self.named, name: token}))

    @property
    def variables(self) -> dict[str, str]:
        """What a chat template finds under the tokens' names."""
        return {name: token.content for name, token in self.named.items()}


def parse_special_tokens(
    settings: Mapping[str, Any], special_map: Mapping[str, Any], defaults: Mapping[str, str]
) -> SpecialTokens:
    """Reads tokenizer_config.json and special_tokens_map.json; `defaults` are the texts of tokens
    that neither names. Raises InvalidArgument."""
    declared = _declared(settings)
    mapped = special_map if declared is None else {}
    _check_map(mapped)
    named, others = _extra(CONFIG_FILE, settings, None)
    more, others = _extra(MAP_FILE, mapped, others)
    named |= more
    kept = {name: value for name, value in settings.items() if name not in _ADDS}
    entries = {**defaults, **kept, **mapped}
    for name, value in entries.items():
        file = MAP_FILE if name in mapped else CONFIG_FILE
        if name in _NAMED and value is not None and not isinstance(value, str | Mapping):
            raise _refuse(file, name, "must be a text, or an object with content")
        if name.endswith("_token") and (isinstance(value, str) or _is_token(file, value)):
            named[name] = _token(file, name, value)
        elif name in _NAMED and value is not None:
            raise _refuse(file, name, "an object must say that its __type is AddedToken")
    return SpecialTokens(_ordered(named), tuple(others or ()), declared, entries.keys())


def _ordered(named: Mapping[str, AddedToken]) -> dict[str, AddedToken]:
    """In the order in which those that are new are given their ids."""
    return {name: named[name] for name in (*_NAMED, *named) if name in named}


def _is_token(file: str, value: Any) -> bool:
    """In tokenizer_config.json an object is a token only where it says so."""
    return isinstance(value, Mapping) and (file == MAP_FILE or value.get("__type") == _TYPE)


def _declared(settings: Mapping[str, Any]) -> dict[int, AddedToken] | None:
    field = "added_tokens_decoder"
    if field not in settings:
        return None
    if not isinstance(settings[field], Mapping):
        raise _refuse(CONFIG_FILE, field, "must be an object")
    tokens: dict[int, AddedToken] = {}
    for text, value in settings[field].items():
        if not isinstance(value, Mapping):
            raise _refuse(CONFIG_FILE, field, "must hold objects with content")
        tokens[_id(text)] = _token(CONFIG_FILE, field, value)
    return tokens


def _check_map(mapped: Mapping[str, Any]) -> None:
    """transformers takes every entry of it for a setting: those of other kinds are not followed."""
    for name, value in mapped.items():
        token = name.endswith("_token") and isinstance(value, str | Mapping | None)
        if name in _ADDS or (not token and name not in _EXTRA):
            raise _refuse(MAP_FILE, name, "is no special token; such settings are not read there")


def _extra(
    file: str, entries: Mapping[str, Any], others: list[AddedToken] | None
) -> tuple[dict[str, AddedToken], list[AddedToken] | None]:
    """Tokens with names of the model's own, and those without; the older spelling counts where
    nothing is under the newer."""
    named: dict[str, AddedToken] = {}
    for field in _EXTRA:
        extra = entries.get(field)
        if isinstance(extra, Mapping) and (file, field) != (MAP_FILE, _EXTRA[1]):
            named |= {name: _extra_token(file, field, value) for name, value in extra.items()}
        elif isinstance(extra, list):
            if field == _EXTRA[0] or others is None:
                others = [*(others or ()), *(_extra_token(file, field, value) for value in extra)]
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
    flags = {name: value[name] for name in _FLAGS if name in value}
    if file == MAP_FILE:
        flags["special"] = True
    if not all(type(flag) is bool for flag in flags.values()):
        raise _refuse(file, field, f"{', '.join(_FLAGS)} are true or false")
    return AddedToken(content, **flags)


def _extra_token(file: str, field: str, value: Any) -> AddedToken:
    typed = isinstance(value, Mapping) and value.get("__type") == _TYPE
    listed = isinstance(value, Mapping) and (file, field) == (MAP_FILE, _EXTRA[0])
    if not isinstance(value, str) and not typed and not (listed and "special" not in value):
        raise _refuse(file, field, "must hold texts, or objects whose __type is AddedToken")
    return _token(file, field, value)


def _id(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _refuse(CONFIG_FILE, "added_tokens_decoder", "names ids") from None


def _refuse(file: str, field: str, message: str) -> InvalidArgument:
    return InvalidArgument(f"{file}: {field}: {message}", field=field)
