"""The small files beside a model's tokenizer.json: each is looked at before that one is opened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from services.common.errors import InvalidArgument
from services.model.chat import ChatTemplate
from services.model.defaults import parse_defaults
from services.model.families import DEFAULT_ENDS
from services.model.special_tokens import MAP_FILE, SpecialTokens, parse_special_tokens
from services.model.tokenizer_class import TokenizerClass, class_of
from services.model.tokenizer_settings import CONFIG_FILE, check_settings

CONFIG = "config.json"
GENERATION_FILE = "generation_config.json"
TEMPLATE_FILE = "chat_template.jinja"
SMALL_FILES = (CONFIG_FILE, MAP_FILE, GENERATION_FILE, TEMPLATE_FILE)
MAX_FILE_BYTES = 64 << 20
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


class SmallFiles:
    """What they say. Raises InvalidArgument, naming file and field."""

    def __init__(self, config: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """`config` is config.json."""
        for name in SMALL_FILES:
            check_size(files, name)
        self._config = config
        self.settings = json_object(files, CONFIG_FILE)
        self._map = json_object(files, MAP_FILE) if MAP_FILE in files else {}
        self.generation = json_object(files, GENERATION_FILE)
        check_settings(self.settings)
        self.defaults = parse_defaults(self.generation)
        """The sampling values that the model comes with."""
        named = [*_ids(GENERATION_FILE, self.generation), *_ids(CONFIG, config)]
        if GENERATION_FILE not in files and "eos_token_id" not in config:
            named += DEFAULT_ENDS.get(str(config.get("model_type")), ())
        self.end_ids = named
        """What generation_config.json and config.json call an end."""
        self._source = _template(files, self.settings)
        self.template_file = TEMPLATE_FILE if TEMPLATE_FILE in files else CONFIG_FILE
        """Where the template stands."""

    def special_tokens(self, tokenizer_class: TokenizerClass) -> SpecialTokens:
        """The special tokens that are named."""
        return parse_special_tokens(self.settings, self._map, tokenizer_class.named)

    def template(self, special_tokens: SpecialTokens) -> ChatTemplate | None:
        """The chat template; None where the model has none."""
        if self._source is None:
            return None
        try:
            return ChatTemplate(self._source, special_tokens.variables)
        except InvalidArgument as error:
            raise refuse(self.template_file, "chat_template", error.message) from error


def check_small_files(config: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """What they tell by themselves. Raises InvalidArgument."""
    small = SmallFiles(config, files)
    small.template(small.special_tokens(class_of(config, small.settings, b"")))


def check_size(files: Mapping[str, bytes], name: str) -> None:
    """Raises InvalidArgument for a file that is too large."""
    if len(files.get(name, b"")) > MAX_FILE_BYTES:
        raise refuse(name, "", f"has over {MAX_FILE_BYTES} bytes")


def json_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """A file as a JSON object; empty where there is none."""
    try:
        value = json.loads(files.get(name, b"{}").decode())
    except (ValueError, RecursionError) as error:
        raise refuse(name, "", "is not JSON (in UTF-8, without a byte order mark)") from error
    if not isinstance(value, dict):
        raise refuse(name, "", "is not a JSON object")
    return value


def refuse(file: str, field: str, message: str) -> InvalidArgument:
    """The error for a field of a file, or for all of it."""
    named = f"{file}: {field}: " if field else f"{file}: "
    return InvalidArgument(named + message, field=field or file)


def _ids(file: str, source: Mapping[str, Any]) -> list[int]:
    """The ids that end a sequence; those of other tokens are only looked at."""
    found: dict[str, list[int]] = {}
    for field in _TOKEN_IDS:
        value = source.get(field)
        named = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(token_id) is not int for token_id in named):
            raise refuse(file, field, "must be an id or a list of ids")
        found[field] = named
    if file == GENERATION_FILE and isinstance(source.get("pad_token_id"), list):
        raise refuse(file, "pad_token_id", "must be an id")
    return found["eos_token_id"]


def _template(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> str | None:
    """The template's source: a file of its own goes before the tokenizer's settings; of several,
    the one called default."""
    if TEMPLATE_FILE in files:
        try:
            return files[TEMPLATE_FILE].decode()
        except UnicodeDecodeError as error:
            raise refuse(TEMPLATE_FILE, "", "is not UTF-8") from error
    value = settings.get("chat_template")
    if isinstance(value, list):
        value = dict(map(_named, value))
    if isinstance(value, dict):
        value = value.get("default")
    if value is not None and not isinstance(value, str):
        raise refuse(CONFIG_FILE, "chat_template", "must be a text, or texts by name")
    return value


def _named(entry: Any) -> tuple[str, Any]:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or "template" not in entry:
        raise refuse(CONFIG_FILE, "chat_template", "must hold objects with name and template")
    return name, entry["template"]
