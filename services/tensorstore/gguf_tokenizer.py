"""The Hugging Face tokenizer files of a GGUF's byte-level BPE vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from services.common.errors import InvalidArgument

_CONTROL, _USER_DEFINED = 3, 4
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and generation_config.json; raises InvalidArgument
    for a vocabulary of another kind."""
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        raise InvalidArgument("only byte-level BPE vocabularies are read", field="tokenizer")
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    merges = _strings(metadata, "tokenizer.ggml.merges")
    kinds = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise InvalidArgument("token types and tokens differ in number", field="tokenizer")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise InvalidArgument("a token occurs twice", field="tokenizer")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise InvalidArgument("a merge is not a pair", field="tokenizer")
    try:
        model = models.BPE(vocab=vocabulary, merges=[(a, b) for a, b in pairs])
    except Exception as error:  # the library raises no narrower type
        raise InvalidArgument(f"merges: {ascii(str(error))[:80]}", field="tokenizer") from None
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _pre_tokenizer(metadata.get("tokenizer.ggml.pre"))
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    plain = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
    return {
        "tokenizer.json": tokenizer.to_str(pretty=False).encode(),
        "tokenizer_config.json": _dump(_config(metadata, tokens, special)),
        "generation_config.json": _dump(_generation_config(metadata)),
    }


def _pre_tokenizer(kind: object) -> Any:
    if kind == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    if kind in ("gpt-2", "default"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    pattern = {"llama-bpe": _LLAMA3, "qwen2": _QWEN2}.get(str(kind))
    if pattern is None:
        raise InvalidArgument(f"pre-tokenizer {ascii(kind)[:40]} is not known", field="tokenizer")
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _config(metadata: Mapping[str, Any], tokens: list[str], special: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
        "add_prefix_space": bool(metadata.get("tokenizer.ggml.add_space_prefix", False)),
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": special,
        "model_max_length": metadata.get(
            f"{metadata.get('general.architecture')}.context_length", 2048
        ),
    }
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = token_id(metadata, theirs)
        if number is not None and number < len(tokens):
            config[f"{ours}_token"] = tokens[number]
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    return config


def _generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        f"{ours}_token_id": token_id(metadata, theirs)
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return {key: number for key, number in found.items() if number is not None}


def token_id(metadata: Mapping[str, Any], which: str) -> int | None:
    """A special token's id, None where the file names none."""
    number = metadata.get(f"tokenizer.ggml.{which}_token_id")
    return number if isinstance(number, int) and number >= 0 else None


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidArgument(f"{key} must be a list of strings", field="tokenizer")
    return value


def _dump(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, ensure_ascii=False, indent=1).encode()
