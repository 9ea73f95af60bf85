"""The text files of models that people might bring: small ones of three kinds, each changed once.

Changes are those that the wild shows: a key dropped, null, of another type, out of range, said in
another file with another value; a file that is missing, empty, cut short, not UTF-8, or a pointer
of Git LFS.
"""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TOKENIZER, SETTINGS, SPECIALS = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
BOS, EOS, TURN = "<s>", "</s>", "<|turn|>"
VOCABULARY_SIZE = 420
CORPUS = (
    "the cat sat on the mat and the dog ran to the house with an answer of 12.5 percent",
    "a question: what is it? an answer, perhaps; 東京 and é are not the same as 🚀 or others",
    "def main(): return [x for x in range(10)]  # two  spaces and\nlines\n\n\tof text",
)
_SPLIT = (
    r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
)
_CHAT = (
    "{{ bos_token }}{% for message in messages %}<|turn|>{{ message.role }}\n"
    "{{ message.content | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
_OTHER_TYPES: tuple[Any, ...] = (None, True, False, 7, -1, 1.5, "x", "", [], [1], {}, {"a": 1})


_SETTINGS: tuple[tuple[str, Any], ...] = (
    ("chat_template", "{{ messages[0].content }}"),
    ("split_special_tokens", True),
    ("add_bos_token", False),
    ("add_eos_token", True),
)


@cache
def bases() -> dict[str, dict[str, bytes]]:
    """The files of each kind, by name."""
    return {
        "byte-level": _files(
            _byte_level(), {"add_bos_token": True, "clean_up_tokenization_spaces": True}
        ),
        "byte fallback": _files(_byte_fallback(), {"add_bos_token": True, "legacy": False}),
        "unigram": _files(_unigram(), {"unk_token": "<unk>"}),
    }


def mutant(seed: int) -> tuple[str, str, dict[str, bytes]]:
    """The kind, what was changed in words, and the files."""
    chance = random.Random(seed)
    kind = chance.choice(sorted(bases()))
    files = dict(bases()[kind])
    name = chance.choice((TOKENIZER, TOKENIZER, SETTINGS, SETTINGS, SPECIALS, GENERATION, TEMPLATE))
    if name == TEMPLATE or chance.random() < 0.2:
        said = _damage(files, name, chance)
    elif chance.random() < 0.2:
        said = _contradict(files, chance)
    else:
        said = _change(files, name, chance)
    return kind, said, files


def _damage(files: dict[str, bytes], name: str, chance: random.Random) -> str:
    data = files[name]
    how = chance.choice(("missing", "empty", "cut short", "not UTF-8", "BOM", "LFS pointer"))
    if how == "missing":
        del files[name]
    else:
        files[name] = {
            "empty": b"",
            "cut short": data[: chance.randrange(1, len(data))],
            "not UTF-8": data[:2] + b"\xff\xfe" + data[2:],
            "BOM": b"\xef\xbb\xbf" + data,
            "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        }[how]
    return f"{name} {how}"


def _contradict(files: dict[str, bytes], chance: random.Random) -> str:
    """A second opinion on a special token, on what ends a sequence, or on a setting."""
    name = chance.choice((SETTINGS, SPECIALS, GENERATION))
    key, value = chance.choice(_SETTINGS)
    if name != GENERATION and chance.random() < 0.4:
        pass
    elif name == GENERATION:
        key, value = "eos_token_id", chance.choice((5, [5, 6], [6, 100_000], [], 100_000))
    else:
        key = chance.choice(("bos_token", "eos_token", "pad_token", "unk_token"))
        token = chance.choice((TURN, "the", "<new>", EOS))
        value = chance.choice((token, {"content": token, "lstrip": True, "__type": "AddedToken"}))
    files[name] = _dump({**json.loads(files[name]), key: value})
    return f"{name}: {key} = {value!r}"


def _change(files: dict[str, bytes], name: str, chance: random.Random) -> str:
    document = json.loads(files[name])
    owner, key = chance.choice(_places(document))
    if chance.random() < 0.4:
        del owner[key]
        said = "dropped"
    else:
        owner[key] = chance.choice(_OTHER_TYPES)
        said = f"= {owner[key]!r}"
    files[name] = _dump(document)
    return f"{name}: {key} {said}"


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Every key outside the vocabulary; of long lists their first entries."""
    found: list[tuple[Any, Any]] = []
    if isinstance(document, dict):
        keys: list[Any] = list(document)
    else:
        keys = list(range(min(len(document), 2)))
    for key in keys:
        found.append((document, key))
        if isinstance(document[key], dict | list) and key not in ("vocab", "merges"):
            found += _places(document[key])
    return found


def _files(tokenizer: Tokenizer, settings: dict[str, Any]) -> dict[str, bytes]:
    named = {"bos_token": BOS, "eos_token": EOS}
    return {
        TOKENIZER: tokenizer.to_str().encode(),
        SETTINGS: _dump({"tokenizer_class": "PreTrainedTokenizerFast", **named, **settings}),
        SPECIALS: _dump(named),
        GENERATION: _dump({"eos_token_id": [tokenizer.token_to_id(EOS)], "temperature": 0.7}),
        TEMPLATE: _CHAT.encode(),
    }


def _dump(document: Any) -> bytes:
    return json.dumps(document).encode()


def _ended(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in (BOS, EOS, TURN)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _ended(tokenizer)


def _byte_fallback() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = _metaspaces()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    learned = json.loads(tokenizer.to_str())["model"]
    texts = ["<unk>", BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    vocabulary = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    merges = [tuple(pair) for pair in learned["merges"]]
    model = models.BPE(
        vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _metaspaces()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _ended(tokenizer)


def _metaspaces() -> Any:
    return normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<unk>", BOS, EOS],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.decoder = decoders.Metaspace()
    return _ended(tokenizer)
