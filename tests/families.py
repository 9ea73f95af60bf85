"""Tokenizers and chat templates of the model families that people serve, each as a folder.

Where the real files are to be had, they are real; else the template is written in the family's
style, over the real tokenizer that is nearest to the family's, with its special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.npm_tokenizers import folder

TEMPLATES = Path(__file__).parent / "chat_templates"
Change = Callable[[dict[str, Any]], None]


def _unchanged(_tokenizer: dict[str, Any]) -> None:
    """The tokenizer.json as it is."""


@dataclass(frozen=True)
class Family:
    """How to make one family's folder."""

    base: str
    """The real tokenizer."""
    template: str = ""
    """File under chat_templates/; empty for the template that comes with the tokenizer."""
    specials: tuple[str | Mapping[str, Any], ...] = ()
    """Tokens added, or changed in their flags."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Changes to tokenizer_config.json; None drops an entry."""
    change: Change = _unchanged

    def write(self, target: Path) -> None:
        """Writes the folder."""
        source = folder(self.base)
        tokenizer = json.loads((source / "tokenizer.json").read_bytes())
        added = {token["content"]: token for token in tokenizer["added_tokens"]}
        for special in self.specials:
            flags = {"content": special} if isinstance(special, str) else dict(special)
            known = added.get(flags["content"]) or _token(tokenizer, added, flags["content"])
            added[flags["content"]] = known | flags
        tokenizer["added_tokens"] = sorted(added.values(), key=lambda token: token["id"])
        self.change(tokenizer)
        settings = json.loads((source / "tokenizer_config.json").read_bytes())
        settings.pop("added_tokens_decoder")  # of the real one: the flags above count
        settings |= self.settings
        settings = {name: value for name, value in settings.items() if value is not None}
        target.mkdir(parents=True, exist_ok=True)
        if self.template:
            settings.pop("chat_template", None)
            text = (TEMPLATES / self.template).read_text()
            (target / "chat_template.jinja").write_text(text)
        (target / "tokenizer.json").write_text(json.dumps(tokenizer))
        (target / "tokenizer_config.json").write_text(json.dumps(settings))


def _token(tokenizer: dict[str, Any], added: dict[str, Any], text: str) -> dict[str, Any]:
    ids = [token["id"] for token in added.values()]
    behind = max([*tokenizer["model"]["vocab"].values(), *ids]) + 1
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": tokenizer["model"]["vocab"].get(text, behind), "special": True, **flags}


def _metaspace(scheme: str) -> Change:
    """As transformers v5 saves what was converted from SentencePiece."""

    def change(tokenizer: dict[str, Any]) -> None:
        tokenizer["normalizer"] = None
        tokenizer["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": scheme,
            "split": False,
        }

    return change


def _digits(tokenizer: dict[str, Any]) -> None:
    tokenizer["normalizer"] = None
    tokenizer["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
        ],
    }


def _stripping(*texts: str, **flags: bool) -> tuple[Mapping[str, Any], ...]:
    return tuple({"content": text, **flags} for text in texts)


_S = {"bos_token": "<s>", "eos_token": "</s>"}
_IM = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
FAMILIES: Mapping[str, Family] = {
    "llama-2": Family("llama2", "inst_marks.jinja"),
    "llama-2-saved-by-v5": Family("llama2", "inst_marks.jinja", change=_metaspace("first")),
    "llama-2-normalized": Family(
        "llama2", "inst_marks.jinja", _stripping("<s>", "</s>", normalized=True)
    ),
    "llama-3": Family("llama3_1"),
    "llama-3.1": Family("llama3_1", "headers_dated.jinja"),
    "mistral-v0.1": Family("llama2", "inst_marks.jinja", settings={"add_bos_token": None}),
    "mistral-v0.2": Family("llama2", "inst_tokens.jinja", change=_metaspace("always")),
    "mistral-v0.3": Family(
        "llama2", "inst_tokens.jinja", ("[INST]", "[/INST]"), change=_metaspace("first")
    ),
    "mistral-nemo": Family("mistral_nemo"),
    "qwen-2.5": Family("qwen3", "chatml_default_system.jinja"),
    "qwen-3": Family("qwen3"),
    "qwen-3-special-think": Family(
        "qwen3", "chatml_thinking.jinja", _stripping("<think>", "</think>", special=True)
    ),
    "gemma": Family("gemma", "turns.jinja", ("<start_of_turn>", "<end_of_turn>")),
    "phi-3": Family(
        "llama2",
        "role_tokens.jinja",
        _stripping("<|end|>", "<|user|>", "<|system|>", "<|assistant|>", "</s>", rstrip=True),
        settings={"add_bos_token": False},
    ),
    "phi-4": Family(
        "qwen3",
        "separated.jinja",
        _stripping("<|im_start|>", "<|im_sep|>", "<|im_end|>", lstrip=True, rstrip=True),
    ),
    "smollm-2": Family("qwen3", "chatml_default_system.jinja", settings=_IM, change=_digits),
    "smollm-3": Family("llama3_1", "chatml_generation.jinja", ("<|im_start|>", "<|im_end|>")),
    "tinyllama": Family("llama2", "headings.jinja"),
    "zephyr": Family("llama2", "headings.jinja", change=_metaspace("never")),
    "hermes": Family(
        "llama2",
        "chatml_default_system.jinja",
        ("<|im_start|>", "<|im_end|>"),
        settings={"eos_token": "<|im_end|>"},
    ),
    "deepseek-r1-qwen": Family(
        "qwen3",
        "reasoning.jinja",
        (
            "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
            "<\uff5cend\u2581of\u2581sentence\uff5c>",
            *_stripping("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", special=False),
        ),
        settings={
            "add_bos_token": True,
            "bos_token": "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
            "eos_token": "<\uff5cend\u2581of\u2581sentence\uff5c>",
        },
    ),
    "deepseek-r1-llama": Family(
        "llama3_1",
        "reasoning.jinja",
        (
            "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
            "<\uff5cend\u2581of\u2581sentence\uff5c>",
            "<\uff5cUser\uff5c>",
            "<\uff5cAssistant\uff5c>",
            *_stripping("<think>", "</think>", special=True),
        ),
        settings={"bos_token": "<\uff5cbegin\u2581of\u2581sentence\uff5c>"},
    ),
    "granite": Family(
        "llama3_1", "roles.jinja", ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>")
    ),
}
