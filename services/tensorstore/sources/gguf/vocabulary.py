"""The two kinds of vocabulary that a GGUF file may hold, as the tokenizers library knows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from services.tensorstore.sources.gguf.metadata import Metadata, refuse

_MAX_PIECE_CHARS = 256
_NORMAL = 1  # llama.cpp's kind of a token that is nothing else
_BLANK = "\u2581"
# The expressions of the models' own tokenizer.json; transformers has the same ones.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class GgufVocabulary:
    """A tokenizer without its special tokens."""

    tokenizer: Tokenizer
    tokens: list[str]
    kinds: list[int]
    """llama.cpp's kind of each token."""
    adds_bos: bool
    """Whether a text begins with bos if the file does not say."""


@dataclass(frozen=True)
class Splitting:
    """What `tokenizer.ggml.pre` stands for."""

    pattern: str | None = None  # GPT-2's
    digits: bool = False
    """Each digit is a word of its own before the pattern is looked for."""
    nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


_GPT2_STYLE = Splitting()
_SMOLLM_STYLE = Splitting(digits=True)
_LLAMA3_STYLE = Splitting(_LLAMA3, ignore_merges=True, adds_bos=True)
_QWEN2_STYLE = Splitting(_QWEN2, nfc=True)
SPLITTINGS = {
    "dbrx": Splitting(_LLAMA3),
    "deepseek-r1-qwen": Splitting(_QWEN2),
    "default": _GPT2_STYLE,
    "falcon3": _LLAMA3_STYLE,
    "gpt-2": _GPT2_STYLE,
    "gpt-4o": Splitting(_GPT4O),
    "llama-bpe": _LLAMA3_STYLE,
    "llama-v3": _LLAMA3_STYLE,
    "llama3": _LLAMA3_STYLE,
    "qwen2": _QWEN2_STYLE,
    "refact": _SMOLLM_STYLE,
    "smaug-bpe": Splitting(_LLAMA3),
    "smollm": _SMOLLM_STYLE,
    "starcoder": _SMOLLM_STYLE,
    "tekken": Splitting(_TEKKEN, ignore_merges=True, adds_bos=True),
}


def byte_level(metadata: Metadata, tokens: list[str], kinds: list[int]) -> GgufVocabulary:
    """Byte-level BPE, as GPT-2's."""
    name = metadata.text("tokenizer.ggml.pre")
    if name is None:
        raise refuse("tokenizer.ggml.pre", "is missing, so how a text is split is not known")
    if name not in SPLITTINGS:
        raise refuse("tokenizer.ggml.pre", f"{ascii(name)[:40]} is not known")
    splitting = SPLITTINGS[name]
    merges = _merges(metadata)
    if merges is None:
        raise refuse("tokenizer.ggml.merges", "is missing")
    metadata.take("tokenizer.ggml.scores")  # of SentencePiece's
    metadata.neutral("tokenizer.ggml.add_space_prefix", (False,))
    ignored = metadata.flag("tokenizer.ggml.ignore_merges", splitting.ignore_merges)
    tokenizer = Tokenizer(_bpe(tokens, merges, ignore_merges=ignored))
    if splitting.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(_pre_tokenizers(splitting)))
    tokenizer.decoder = decoders.ByteLevel()
    return GgufVocabulary(tokenizer, tokens, kinds, splitting.adds_bos)


def _pre_tokenizers(splitting: Splitting) -> Iterator[Any]:
    if splitting.digits:
        yield pre_tokenizers.Digits(individual_digits=True)
    if splitting.pattern is not None:
        yield pre_tokenizers.Split(Regex(splitting.pattern), behavior="isolated")
    yield pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.pattern is None)


def sentencepiece(metadata: Metadata, tokens: list[str], kinds: list[int]) -> GgufVocabulary:
    """SentencePiece BPE with bytes for what no piece spells, as Llama 2's; transformers'
    `LlamaTokenizer` is the model of it."""
    _check_pieces(metadata, tokens)
    merges = _merges(metadata)
    if merges is None:
        scores = metadata.numbers("tokenizer.ggml.scores", len(tokens))
        merges = _merges_of(tokens, scores)
    else:
        metadata.take("tokenizer.ggml.scores")
    prefixed = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    tokenizer = Tokenizer(_bpe(tokens, merges, fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        _BLANK, prepend_scheme="first" if prefixed else "never", split=False
    )
    steps = _piece_decoders()
    if prefixed:
        steps.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(steps)
    return GgufVocabulary(tokenizer, tokens, kinds, adds_bos=True)


def gemma_pieces(metadata: Metadata, tokens: list[str], kinds: list[int]) -> GgufVocabulary:
    """A Gemma's SentencePiece BPE; transformers' `GemmaTokenizer` is the model of it. Its merges
    follow from the order of its pieces, as in its published tokenizer.json; the scores of a file
    are of another order. Runs of spaces, which converters spell out and call user-defined, are
    pieces like others."""
    _check_pieces(metadata, tokens)
    metadata.take("tokenizer.ggml.scores")
    metadata.neutral("tokenizer.ggml.add_space_prefix", (False,))
    runs = [len(token) > 1 and not token.strip(" ") for token in tokens]
    tokens = [
        _BLANK * len(token) if run else token for token, run in zip(tokens, runs, strict=True)
    ]
    kinds = [_NORMAL if run else kind for kind, run in zip(kinds, runs, strict=True)]
    if len(set(tokens)) != len(tokens):
        raise refuse("tokenizer.ggml.tokens", "a run of spaces occurs twice")
    merges = _merges(metadata)
    if merges is None:
        merges = [merge for ways in _ways(tokens) for merge in ways]
    tokenizer = Tokenizer(_bpe(tokens, merges, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", _BLANK)
    tokenizer.decoder = decoders.Sequence(_piece_decoders())
    return GgufVocabulary(tokenizer, tokens, kinds, adds_bos=True)


def _check_pieces(metadata: Metadata, tokens: list[str]) -> None:
    metadata.neutral("tokenizer.ggml.pre", ("default",))
    metadata.neutral("tokenizer.ggml.ignore_merges", (False,))
    if max(map(len, tokens)) > _MAX_PIECE_CHARS:
        raise refuse("tokenizer.ggml.tokens", f"one has more than {_MAX_PIECE_CHARS} characters")


def _piece_decoders() -> list[Any]:
    return [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]


def _merges(metadata: Metadata) -> list[tuple[str, str]] | None:
    lines = metadata.strings("tokenizer.ggml.merges")
    if lines is None:
        return None
    pairs = [line.split(" ") for line in lines]
    if any(len(pair) != 2 for pair in pairs):
        raise refuse("tokenizer.ggml.merges", "one is not a pair")
    return [(left, right) for left, right in pairs]


def _merges_of(tokens: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """The merges that SentencePiece's scores imply: every way to put a piece together from two
    others, the best piece first; among equals the longer left half, then the longer right one, as
    transformers orders them (convert_slow_tokenizer, generate_merges)."""
    found = [
        (score, left, right)
        for ways, score in zip(_ways(tokens), scores, strict=True)
        for left, right in ways
    ]
    found.sort(key=lambda merge: (-merge[0], -len(merge[1]), -len(merge[2])))
    return [(left, right) for _, left, right in found]


def _ways(tokens: list[str]) -> Iterator[list[tuple[str, str]]]:
    """For each piece every way to put it together from two others, by the ids of these."""
    ids = {token: number for number, token in enumerate(tokens)}
    for token in tokens:
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        ways = [(left, right) for left, right in halves if left in ids and right in ids]
        yield sorted(ways, key=lambda pair: (ids[pair[0]], ids[pair[1]]))


def _bpe(tokens: list[str], merges: list[tuple[str, str]], **options: bool) -> models.BPE:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    try:
        return models.BPE(vocab=vocabulary, merges=merges, **options)
    except Exception as error:  # the library raises no narrower type
        raise refuse("tokenizer.ggml.merges", ascii(str(error))[:80]) from None
