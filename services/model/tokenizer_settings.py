"""What tokenizer_config.json says beside special tokens and templates: read with its type, or
refused by name.

Most of it is for training batches or for display. It is checked all the same, since transformers
does not load what is of another type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.common.errors import InvalidArgument

CONFIG_FILE = "tokenizer_config.json"
CLEAN_UP = "clean_up_tokenization_spaces"
CLEAN_UP_BPE = f"{CLEAN_UP}_for_bpe_even_though_it_will_corrupt_output"
_SIDES = ("padding_side", "truncation_side")
_LISTS = ("chat_control_tokens", "model_input_names")
_FLAGS = ("add_prefix_space", "legacy", CLEAN_UP, CLEAN_UP_BPE)
_INNER = (
    "fast_tokenizer_files",
    "fix_mistral_regex",
    "gguf_file",
    "merges",
    "model_specific_special_tokens",
    "post_processor",
    "tokenizer_object",
    "tokenizer_padding",
    "tokenizer_truncation",
    "vocab",
)
"""Arguments of transformers' own that would change the tokenizer beside its file."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises InvalidArgument for what transformers does not load, or for what is not followed."""
    for name in _SIDES:
        if name in settings and settings[name] not in ("left", "right"):
            raise refuse(name, "must be left or right")
    for name in _LISTS:
        if name in settings and not isinstance(settings[name], list):
            raise refuse(name, "must be a list")
    for name in _FLAGS:
        if type(settings.get(name)) not in (bool, type(None)):
            raise refuse(name, "must be true or false")
    for name in ("model_max_length", "max_len"):
        if type(settings.get(name)) not in (int, float, type(None)):
            raise refuse(name, "must be a number")
    if settings.get("split_special_tokens", False) is not False:
        raise refuse("split_special_tokens", "must be false")
    for name in _INNER:
        if settings.get(name) is not None:
            raise refuse(name, "is not followed beside tokenizer.json")
    if settings.get("init_inputs", []) != []:
        raise refuse("init_inputs", "is not followed beside tokenizer.json")
    _check_code(settings.get("auto_map", {}))


def _check_code(auto_map: Any) -> None:
    """A model's own code is never run, and what it would do to a text is not known."""
    named = auto_map.get("AutoTokenizer") if isinstance(auto_map, Mapping) else auto_map
    if named is not None or auto_map is None:
        raise refuse("auto_map", "a tokenizer's own code is not run: must not name AutoTokenizer")


def refuse(field: str, message: str) -> InvalidArgument:
    """The error for a field of tokenizer_config.json."""
    return InvalidArgument(f"{CONFIG_FILE}: {field}: {message}", field=field)
