"""What can be known of a model's text before anything of it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.common.errors import InvalidArgument
from services.model.chat import ChatTemplate, Message
from services.model.small_files import CONFIG, json_object, refuse
from services.model.text import ModelText
from services.model.tokenizer import TOKENIZER_FILE
from services.model.written import written

ADDED_FILE = "added_tokens.json"
_TRIAL = "Is a \u00e9 one letter?\n  12,5 "


def check_text(config: Mapping[str, Any], vocabulary_size: int, files: Mapping[str, bytes]) -> None:
    """Reads the files beside the weights as a router will, and tries them.

    Raises InvalidArgument naming the file and the field that no router could serve.
    """
    text = ModelText(config, vocabulary_size, files)
    _check_vocabulary(text)
    _check_added(text, files)
    _check_specials(text)
    _check_prompt(text)
    if text.template is not None:
        _check_turn(text, text.template, text.template_file)


def _check_vocabulary(text: ModelText) -> None:
    """Tokens that were added may lie behind what the model can embed; nothing leads there but
    their own texts."""
    last = text.tokenizer.last_model_id
    if last >= text.vocabulary_size:
        raise InvalidArgument(
            f"{TOKENIZER_FILE}: model.vocab: has ids up to {last}, and vocab_size in {CONFIG} is "
            f"{text.vocabulary_size}",
            field="vocab_size",
        )


def _check_added(text: ModelText, files: Mapping[str, bytes]) -> None:
    """transformers adds what this file has and tokenizer.json lacks, where the settings declare no
    added tokens; what both have is tokenizer.json's."""
    if text.declares_added or ADDED_FILE not in files:
        return
    for token, token_id in json_object(files, ADDED_FILE).items():
        if type(token_id) is not int or text.tokenizer.written_ids.get(token) != token_id:
            raise refuse(
                ADDED_FILE,
                ascii(token)[1:-1][:60],
                f"is not this id of {TOKENIZER_FILE}'s added_tokens",
            )


def _check_specials(text: ModelText) -> None:
    """Special tokens can be told from text, and the tokens are the same where none has to be."""
    tokenizer = text.tokenizer
    for special in list(tokenizer.special_ids)[:_MOST_SPECIALS]:
        trial = written(f"a {special} b{special}c")
        if tokenizer.encode_guarded(trial) != tokenizer.encode_rendered(trial):
            raise InvalidArgument(
                f"{TOKENIZER_FILE}: added_tokens: {special!a} cannot be told from text",
                field="added_tokens",
            )


def _check_prompt(text: ModelText) -> None:
    try:
        ids = text.tokenizer.encode(_TRIAL)
    except InvalidArgument as error:
        message = f"{TOKENIZER_FILE}: a plain text cannot be encoded"
        raise InvalidArgument(message, field=TOKENIZER_FILE) from error
    _check_ids(text, ids, "post_processor")


def _check_turn(text: ModelText, template: ChatTemplate, file: str) -> None:
    """A conversation of one plain turn becomes a prompt, and of every special token in it is known
    that the template wrote it."""
    try:
        rendered = template.render([Message("user", _TRIAL)], 0)
        ids = text.tokenizer.encode_rendered(rendered)
        as_written = text.tokenizer.encode_rendered(written(rendered))
    except InvalidArgument as error:
        raise _refuse_template(file, f"cannot render a user's turn: {error.message}") from error
    if ids != as_written:
        raise _refuse_template(file, "makes special tokens in a way that is not followed here")
    _check_ids(text, ids, "chat_template")


def _refuse_template(file: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"{file}: chat_template: {reason}", field="chat_template")


def _check_ids(text: ModelText, ids: list[int], field: str) -> None:
    if not ids:
        raise InvalidArgument(
            f"{TOKENIZER_FILE}: {field}: a plain text becomes no tokens", field=field
        )
    beyond = [token_id for token_id in ids if token_id >= text.vocabulary_size]
    if beyond:
        raise InvalidArgument(
            f"{TOKENIZER_FILE}: {field}: a plain text has id {beyond[0]}, and vocab_size in "
            f"{CONFIG} is {text.vocabulary_size}",
            field="vocab_size",
        )


_MOST_SPECIALS = 64
