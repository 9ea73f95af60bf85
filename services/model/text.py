"""The side of a model that is text: its tokenizer, its chat template, and what ends a sequence.

Read from the small files beside the weights, the way transformers reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from services.common.errors import InvalidArgument
from services.model.chat import ChatTemplate
from services.model.special_tokens import (
    CONFIG_FILE,
    MAP_FILE,
    SpecialTokens,
    parse_special_tokens,
)
from services.model.tokenizer import TOKENIZER_FILE, Tokenizer

CONFIG = "config.json"
GENERATION_FILE = "generation_config.json"
TEMPLATE_FILE = "chat_template.jinja"
FILES = (
    TOKENIZER_FILE,
    CONFIG_FILE,
    MAP_FILE,
    GENERATION_FILE,
    TEMPLATE_FILE,
)
"""The files that are read here."""
MAX_FILE_BYTES = 64 << 20


class ModelText:
    """Raises InvalidArgument, naming file and field, for files that cannot be used."""

    def __init__(
        self, config: Mapping[str, Any], vocabulary_size: int, files: Mapping[str, bytes]
    ) -> None:
        """`config` is config.json; the model can embed as many ids as its vocabulary's size."""
        for name in FILES:
            if len(files.get(name, b"")) > MAX_FILE_BYTES:
                raise _refuse(name, "", f"has over {MAX_FILE_BYTES} bytes")
        if TOKENIZER_FILE not in files:
            raise InvalidArgument(_no_tokenizer(files), field=TOKENIZER_FILE)
        self.settings = _object(files, CONFIG_FILE)
        self.generation = _object(files, GENERATION_FILE)
        special_tokens = parse_special_tokens(self.settings, _object(files, MAP_FILE))
        if self.settings.get("split_special_tokens"):
            raise _refuse(CONFIG_FILE, "split_special_tokens", "must be false")
        self.tokenizer = Tokenizer(files[TOKENIZER_FILE], special_tokens)
        source = _template(files, self.settings)
        self.template = None if source is None else _compiled(files, source, special_tokens)
        """None where the model has none."""
        self.vocabulary_size = vocabulary_size
        self.special_token_ids = {
            text: token_id
            for text, token_id in self.tokenizer.special_ids.items()
            if token_id < self.vocabulary_size
        }
        """By text, of those that the model can produce."""
        end = special_tokens.named.get("eos_token")
        self.eos_token_ids = self._ends(config, end.content if end else None)

    def _ends(self, config: Mapping[str, Any], token: str | None) -> tuple[int, ...]:
        """Every id that any of the files names; one that the model cannot produce ends nothing."""
        ids: list[int] = []
        for file, source in (
            (GENERATION_FILE, self.generation),
            (CONFIG, config),
            (CONFIG_FILE, self.settings),
        ):
            value = source.get("eos_token_id")
            named = value if isinstance(value, list) else [] if value is None else [value]
            if any(type(token_id) is not int for token_id in named):
                raise _refuse(file, "eos_token_id", "must be an id or a list of ids")
            ids += named
        if token == "":
            raise _refuse(CONFIG_FILE, "eos_token", "must not be empty")
        spelt = self.tokenizer.id_of(token) if token is not None else None
        if spelt is not None:
            ids.append(spelt)
        ends = tuple(i for i in dict.fromkeys(ids) if 0 <= i < self.vocabulary_size)
        if not ends:
            raise InvalidArgument(
                f"no file names an end of sequence: eos_token_id in {GENERATION_FILE} or {CONFIG}, "
                f"or eos_token in {CONFIG_FILE}",
                field="eos_token_id",
            )
        return ends


def _no_tokenizer(files: Mapping[str, bytes]) -> str:
    others = [name for name in ("tokenizer.model", "vocab.json", "merges.txt") if name in files]
    if not others:
        return f"{TOKENIZER_FILE} is missing"
    return (
        f"{TOKENIZER_FILE} is missing, and {' and '.join(others)} cannot take its place; make it "
        "with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    )


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """A file as a JSON object; empty where there is none."""
    try:
        value = json.loads(files.get(name, b"{}").decode())
    except (ValueError, RecursionError) as error:
        raise _refuse(name, "", "is not JSON (in UTF-8, without a byte order mark)") from error
    if not isinstance(value, dict):
        raise _refuse(name, "", "is not a JSON object")
    return value


def _template(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> str | None:
    """The template's source: a file of its own goes before the tokenizer's settings; of several,
    the one called default."""
    if TEMPLATE_FILE in files:
        try:
            return files[TEMPLATE_FILE].decode()
        except UnicodeDecodeError as error:
            raise _refuse(TEMPLATE_FILE, "", "is not UTF-8") from error
    value = settings.get("chat_template")
    if isinstance(value, list):
        if not all(isinstance(entry, dict) for entry in value):
            raise _refuse(CONFIG_FILE, "chat_template", "must hold objects with name and template")
        value = {entry.get("name"): entry.get("template") for entry in value}
    if isinstance(value, dict):
        value = value.get("default")
    if value is not None and not isinstance(value, str):
        raise _refuse(CONFIG_FILE, "chat_template", "must be a text, or texts by name")
    return value


def _compiled(
    files: Mapping[str, bytes], source: str, special_tokens: SpecialTokens
) -> ChatTemplate:
    try:
        return ChatTemplate(source, special_tokens.variables)
    except InvalidArgument as error:
        file = TEMPLATE_FILE if TEMPLATE_FILE in files else CONFIG_FILE
        raise _refuse(file, "chat_template", error.message) from error


def _refuse(file: str, field: str, message: str) -> InvalidArgument:
    named = f"{file}: {field}: " if field else f"{file}: "
    return InvalidArgument(named + message, field=field or file)
