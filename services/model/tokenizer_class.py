"""Which class transformers makes of a tokenizer.json, and what that class makes of it.

Most follow the file. Some take only the vocabulary, the merges and the added tokens from it, and
split, normalise and decode in a way of their own, whatever the file says (transformers 5,
`AutoTokenizer.from_pretrained` and `TokenizersBackend.convert_to_native_format`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Encoder

from services.common.errors import InvalidArgument
from services.model.tokenizer_settings import CONFIG_FILE, refuse

MADE_FROM = "made_from"
"""A key of tokenizer_config.json that only this importer writes."""
GGUF = "gguf"
"""Its value beside a tokenizer.json that was made of a GGUF file, and says all there is to say."""
_FOLLOWS_THE_FILE = frozenset(
    {
        *("ernie4_5", "ernie4_5_moe", "flex_olmo", "glm", "glm4", "glm4_moe", "glm4_moe_lite"),
        *("gpt_bigcode", "granite", "granitemoe", "granitemoeshared", "hyperclovax", "minicpm3"),
        *("mimo_v2_flash", "minimax_m2", "ministral3", "mistral", "mixtral", "nemotron", "olmo2"),
        *("olmo3", "phi3", "phimoe", "stablelm"),
    }
)
"""Model types whose tokenizer.json counts, whatever class is named."""
_OF_THE_TYPE: Mapping[str, str] = {
    **dict.fromkeys(("qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("gpt_neox", "olmo", "olmoe"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("cohere", "cohere2"), "CohereTokenizer"),
    **dict.fromkeys(("dbrx", "gpt2", "gptj", "jais2", "opt", "phi", "starcoder2"), "GPT2Tokenizer"),
}
"""The class of a model type where none is named."""
_AS_IT_IS = ("PreTrainedTokenizer", "TokenizersBackend")
_BLANK = "\u2581"
_END = "<|endoftext|>"
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class TokenizerClass:
    """A class that makes its own of a vocabulary."""

    named: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Special tokens that it has where no file says otherwise."""
    dress: Callable[[Encoder, Mapping[str, Any]], None] | None = None
    """Gives an encoder its parts; None where those of the file count."""
    byte_fallback: bool = False
    fuse_unk: bool = False
    bare_specials: bool = False
    """Special tokens take no white space with them, whatever the files say."""
    bare_prompts: bool = False
    """A prompt has no tokens that were not written, whatever file and settings say."""

    def dressed(self, encoder: Encoder, settings: Mapping[str, Any]) -> Encoder:
        """The file's encoder as this class has it: without added tokens, where it is not the same.
        Raises InvalidArgument."""
        if self.dress is None:
            return encoder
        model: Any = encoder.model
        if type(model).__name__ != "BPE":
            raise refuse("tokenizer_class", "is for a tokenizer.json whose model.type is BPE")
        if model.continuing_subword_prefix or model.end_of_word_suffix:
            raise refuse("tokenizer_class", "is for words without a prefix or a suffix")
        model.dropout, model.unk_token, model.ignore_merges = None, None, False
        model.byte_fallback, model.fuse_unk = self.byte_fallback, self.fuse_unk
        own = Encoder(model)
        if encoder.post_processor is not None and not self.bare_prompts:
            own.post_processor = encoder.post_processor
        self.dress(own, settings)
        return own


def class_of(
    config: Mapping[str, Any], settings: Mapping[str, Any], tokenizer_json: bytes
) -> TokenizerClass:
    """The class for a model's config.json and tokenizer_config.json. Raises InvalidArgument."""
    model_type = config.get("model_type")
    if model_type is None or settings.get(MADE_FROM) == GGUF:
        return AS_THE_FILE
    name, file = settings.get("tokenizer_class"), CONFIG_FILE
    if name is None:
        name, file = config.get("tokenizer_class"), "config.json"
    if name is not None and (not isinstance(name, str) or not name):
        raise InvalidArgument(f"{file}: tokenizer_class: must be a name", field="tokenizer_class")
    if str(model_type) in _FOLLOWS_THE_FILE:
        return AS_THE_FILE
    if model_type == "qwen2":
        return _CLASSES["Qwen2Tokenizer"]
    name = name or _OF_THE_TYPE.get(str(model_type), _AS_IT_IS[0])
    known = _CLASSES.get(name.removesuffix("Fast"))
    if known is None:
        raise InvalidArgument(
            f"{file}: tokenizer_class: {name!a:.60} is not known here; PreTrainedTokenizerFast"
            " follows tokenizer.json",
            field="tokenizer_class",
        )
    if known is _CLASSES["LlamaTokenizer"] and b'"ByteLevel"' in tokenizer_json:
        return AS_THE_FILE
    return known


def _llama(encoder: Encoder, settings: Mapping[str, Any]) -> None:
    prefixed = settings.get("add_prefix_space") is not False
    scheme = "never" if not prefixed else "always" if settings.get("legacy") else "first"
    encoder.pre_tokenizer = pre_tokenizers.Metaspace(_BLANK, prepend_scheme=scheme, split=False)
    parts = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    encoder.decoder = decoders.Sequence([*parts, *[decoders.Strip(" ", 1, 0)][: int(prefixed)]])


def _qwen2(encoder: Encoder, settings: Mapping[str, Any]) -> None:
    prefixed = settings.get("add_prefix_space") is True
    encoder.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_QWEN_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefixed, use_regex=False)
    encoder.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    encoder.decoder = decoders.ByteLevel()


def _gpt2(encoder: Encoder, settings: Mapping[str, Any]) -> None:
    prefixed = settings.get("add_prefix_space", False)
    if type(prefixed) is not bool:
        raise refuse("add_prefix_space", "must be true or false")
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefixed)
    encoder.decoder = decoders.ByteLevel()


def _gpt_neox(encoder: Encoder, settings: Mapping[str, Any]) -> None:
    encoder.normalizer = normalizers.NFC()
    _gpt2(encoder, settings)


def _gemma(encoder: Encoder, settings: Mapping[str, Any]) -> None:
    encoder.normalizer = normalizers.Replace(" ", _BLANK)
    encoder.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    encoder.decoder = decoders.Sequence(
        [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )


AS_THE_FILE = TokenizerClass()
_CLASSES = {
    **dict.fromkeys(_AS_IT_IS, AS_THE_FILE),
    "LlamaTokenizer": TokenizerClass(
        MappingProxyType({"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}),
        _llama,
        byte_fallback=True,
        fuse_unk=True,
    ),
    "Qwen2Tokenizer": TokenizerClass(
        MappingProxyType(dict.fromkeys(("unk_token", "eos_token", "pad_token"), _END)),
        _qwen2,
        bare_specials=True,
    ),
    "GPT2Tokenizer": TokenizerClass(
        MappingProxyType(dict.fromkeys(("unk_token", "bos_token", "eos_token"), _END)), _gpt2
    ),
    "GPTNeoXTokenizer": TokenizerClass(
        MappingProxyType(
            dict.fromkeys(("unk_token", "bos_token", "eos_token"), _END)
            | {"pad_token": "<|padding|>"}
        ),
        _gpt_neox,
        bare_prompts=True,
    ),
    "GemmaTokenizer": TokenizerClass(
        MappingProxyType({f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad")}),
        _gemma,
        byte_fallback=True,
        fuse_unk=True,
    ),
}
