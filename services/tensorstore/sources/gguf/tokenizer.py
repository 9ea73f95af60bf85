"""The Hugging Face tokenizer files of the vocabulary in a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from services.model.tokenizer_class import GGUF, MADE_FROM
from services.tensorstore.sources.gguf.metadata import Metadata, refuse
from services.tensorstore.sources.gguf.vocabulary import (
    GgufVocabulary,
    byte_level,
    gemma_pieces,
    sentencepiece,
)

_CONTROL, _USER_DEFINED = 3, 4
_NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
# A chat model ends its turn with one of these if its template does, whatever the file calls the
# end of a text; llama.cpp knows them by their spelling, too.
_TURN_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
# Ids that mark up a fill-in-the-middle prompt, or that models of other kinds use.
_OTHER_IDS = (
    "cls",
    "fim_mid",
    "fim_pad",
    "fim_pre",
    "fim_rep",
    "fim_sep",
    "fim_suf",
    "mask",
    "middle",
    "prefix",
    "seperator",  # llama.cpp's spelling
    "suffix",
)


@dataclass(frozen=True)
class TokenizerFiles:
    """What the importer keeps of a vocabulary."""

    files: dict[str, bytes]
    """tokenizer.json, tokenizer_config.json and generation_config.json."""
    ids: dict[str, int | None]
    """The config's bos, eos and pad token ids."""


def read(metadata: Metadata, rows: int, *, gemma: bool = False) -> TokenizerFiles:
    """The tokenizer of a model, a `gemma` or another, whose embedding has so many rows; raises
    InvalidArgument naming the key that is not understood."""
    vocabulary = _vocabulary(metadata, rows, gemma=gemma)
    tokens, kinds = vocabulary.tokens, vocabulary.kinds
    ids = {
        ours: metadata.index(f"tokenizer.ggml.{theirs}_token_id", len(tokens))
        for ours, theirs in _NAMED.items()
    }
    if ids["eos"] is None:
        raise refuse("tokenizer.ggml.eos_token_id", "is missing, so no answer would end")
    named = {f"{ours}_token": tokens[i] for ours, i in ids.items() if i is not None}
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    plain = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED]
    special = dict.fromkeys([*control, *named.values()])
    tokenizer = vocabulary.tokenizer
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in plain if t not in special])
    adds = _post_process(metadata, tokenizer, vocabulary.adds_bos, named)
    template = _template(metadata)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        MADE_FROM: GGUF,
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": control,
        **adds,
        **named,
    }
    if template is not None:
        config["chat_template"] = template
    kept = {f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad")}
    turn_ends = _turn_ends(metadata, tokens, frozenset(control), template or "")
    ends = list(dict.fromkeys([ids["eos"], *turn_ends]))
    generation: dict[str, Any] = {key: i for key, i in kept.items() if i is not None}
    generation["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=False).encode(),
        "tokenizer_config.json": _dump(config),
        "generation_config.json": _dump(generation),
    }
    return TokenizerFiles(files, kept)


def _vocabulary(metadata: Metadata, rows: int, *, gemma: bool) -> GgufVocabulary:
    kind = metadata.text("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        raise refuse("tokenizer.ggml.model", "the file has no tokenizer")
    if kind not in ("gpt2", "llama"):
        raise refuse(
            "tokenizer.ggml.model",
            f"{ascii(kind)[:40]} is neither gpt2 (byte-level BPE) nor llama (SentencePiece)",
        )
    tokens = metadata.strings("tokenizer.ggml.tokens")
    if not tokens:
        raise refuse("tokenizer.ggml.tokens", "is missing, so the file has no tokenizer")
    if len(tokens) > rows:
        raise refuse("tokenizer.ggml.tokens", f"{len(tokens)} for an embedding of {rows} rows")
    if len(set(tokens)) != len(tokens):
        raise refuse("tokenizer.ggml.tokens", "a token occurs twice")
    kinds = metadata.numbers("tokenizer.ggml.token_type", len(tokens))
    if not set(kinds) <= set(range(1, 7)):
        raise refuse("tokenizer.ggml.token_type", "must be from 1 to 6")
    metadata.neutral("tokenizer.ggml.add_sep_token", (False,))
    metadata.neutral("tokenizer.ggml.remove_extra_whitespaces", (False,))
    metadata.neutral("tokenizer.ggml.precompiled_charsmap", ([],))
    metadata.take("tokenizer.ggml.token_type_count")  # of BERT's
    metadata.take("tokenizer.huggingface.json")  # the same vocabulary once more
    for name in _OTHER_IDS:
        metadata.index(f"tokenizer.ggml.{name}_token_id", len(tokens))
    build = byte_level if kind == "gpt2" else gemma_pieces if gemma else sentencepiece
    return build(metadata, tokens, kinds)


def _post_process(
    metadata: Metadata, tokenizer: Tokenizer, adds_bos: bool, named: dict[str, str]
) -> dict[str, bool]:
    """Sets what is added to a text that is no chat; answers it as the config says it."""
    adds = {
        name: metadata.flag(f"tokenizer.ggml.add_{name}_token", default)
        for name, default in (("bos", adds_bos), ("eos", False))
    }
    for name, added in adds.items():
        if added and f"{name}_token" not in named:
            raise refuse(f"tokenizer.ggml.{name}_token_id", "is missing, but is to be added")
    if any(adds.values()):
        pieces = ["bos"] * adds["bos"] + ["$A"] + ["eos"] * adds["eos"]
        first = [f"{piece}:0" for piece in pieces]
        second = [f"{piece}:1".replace("$A", "$B") for piece in pieces]
        texts = {name: named[f"{name}_token"] for name, added in adds.items() if added}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=first,
            pair=first + second,
            special_tokens=[
                {"id": name, "ids": [tokenizer.token_to_id(text)], "tokens": [text]}
                for name, text in texts.items()
            ],
        )
    return {f"add_{name}_token": added for name, added in adds.items()}


def _template(metadata: Metadata) -> str | None:
    """The chat template; others beside it are for requests with tools or documents."""
    template = metadata.text("tokenizer.chat_template")
    named = metadata.strings("tokenizer.chat_templates") or []
    for name in named:
        metadata.text(f"tokenizer.chat_template.{name}")
    if template is None and named:
        raise refuse("tokenizer.chat_template", "is missing, but there are templates with names")
    return template


def _turn_ends(
    metadata: Metadata, tokens: list[str], control: frozenset[str], template: str
) -> Iterator[int]:
    """Ids beside eos that end an answer."""
    for name in ("eot", "eom"):
        number = metadata.index(f"tokenizer.ggml.{name}_token_id", len(tokens))
        if number is not None:
            yield number
    for text in _TURN_ENDS:
        if text in control and text in template:
            yield tokens.index(text)


def _dump(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, ensure_ascii=False, indent=1).encode()
