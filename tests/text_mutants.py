"""The text files of models that people might bring: small ones of six kinds, each changed once.

Changes are those that the wild shows: a key dropped, null, doubled, of another type, out of range,
said in another file with another value; a file that is missing, empty, cut short, not UTF-8, begun
by a byte order mark, or a pointer of Git LFS.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
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

CONFIG, TOKENIZER, SETTINGS = "config.json", "tokenizer.json", "tokenizer_config.json"
SPECIALS, ADDED = "special_tokens_map.json", "added_tokens.json"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
OTHER_TEMPLATES = "additional_chat_templates"
BOS, EOS, TURN = "<s>", "</s>", "<|turn|>"
TEXT, STARTS, ENDS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCABULARY_SIZE = 420
CORPUS = (
    "the cat sat on the mat and the dog ran to the house with an answer of 12.5 percent",
    "a question: what is it? an answer, perhaps; 東京 and é are not the same as 🚀 or others",
    "def main(): return [x for x in range(10)]  # two  spaces and\nlines\n\n\tof text",
)
_SPLIT = (
    r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
)
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHAT = (
    "{{ bos_token }}{% for message in messages %}<|turn|>{{ message.role }}\n"
    "{{ message.content | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
_CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content"
    " + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_OTHER_TYPES: tuple[Any, ...] = (None, True, False, 7, -1, 1.5, "x", "", [], [1], {}, {"a": 1})
_FILES = (TOKENIZER, TOKENIZER, SETTINGS, SETTINGS, SPECIALS, GENERATION, CONFIG)
_SETTINGS: tuple[tuple[str, Any], ...] = (
    ("split_special_tokens", True),
    ("split_special_tokens", None),
    ("padding_side", "middle"),
    ("padding_side", "left"),
    ("truncation_side", "middle"),
    ("model_max_length", "x"),
    ("model_max_length", -1),
    ("model_max_length", 1e30),
    ("model_max_length", None),
    ("max_len", "x"),
    ("model_input_names", None),
    ("added_tokens_decoder", None),
    ("added_tokens_decoder", {}),
    ("added_tokens_decoder", {"3": "plain"}),
    ("added_tokens_decoder", {"3": {"content": "<new>", "special": True}}),
    ("added_tokens_decoder", {"100000": {"content": "<new>", "special": True}}),
    ("added_tokens_decoder", {"-1": {"content": "<new>"}}),
    ("added_tokens_decoder", {"x": {"content": "<new>"}}),
    ("added_tokens_decoder", {"5": {"content": "the"}, "6": {"content": "the", "lstrip": True}}),
    ("added_tokens_decoder", {"5": {"content": "the", "normalised": True}}),
    ("extra_special_tokens", ["<a>", TURN]),
    ("extra_special_tokens", [{"content": "<a>", "__type": "AddedToken"}]),
    ("extra_special_tokens", [{"content": "<a>"}]),
    ("extra_special_tokens", [7]),
    ("extra_special_tokens", {"image_token": "<image>"}),
    ("extra_special_tokens", {"image_token": 7}),
    ("additional_special_tokens", ["<a>", TURN]),
    ("additional_special_tokens", {"x": "<a>"}),
    ("additional_special_tokens", "<a>"),
    ("image_token", "<image>"),
    ("chat_template", "{{ messages[0].content }}"),
    ("chat_template", [{"name": "default", "template": "{{ messages[0].content }}"}]),
    ("chat_template", [{"name": "tool_use", "template": "{{ messages[0].content }}"}]),
    ("chat_template", [{"name": "default"}]),
    ("chat_template", [{"name": ["x"], "template": "x"}]),
    ("chat_template", {"default": "{{ messages[0].content }}", "rag": "x"}),
    ("chat_template", {"rag": "x"}),
    ("chat_template", None),
    ("chat_template", 7),
    ("chat_template", "{% if %}"),
    ("add_bos_token", False),
    ("add_bos_token", True),
    ("add_eos_token", True),
    ("clean_up_tokenization_spaces", True),
    ("clean_up_tokenization_spaces", "x"),
    ("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", True),
    ("tokenizer_class", None),
    ("tokenizer_class", 7),
    ("tokenizer_class", "PreTrainedTokenizerFast"),
    ("tokenizer_class", "TokenizersBackend"),
    ("tokenizer_class", "PreTrainedTokenizer"),
    ("tokenizer_class", "LlamaTokenizer"),
    ("tokenizer_class", "LlamaTokenizerFast"),
    ("tokenizer_class", "CodeLlamaTokenizer"),
    ("tokenizer_class", "Qwen2Tokenizer"),
    ("tokenizer_class", "Qwen2TokenizerFast"),
    ("tokenizer_class", "GPT2Tokenizer"),
    ("tokenizer_class", "GPT2TokenizerFast"),
    ("tokenizer_class", "BertTokenizer"),
    ("tokenizer_class", "T5Tokenizer"),
    ("tokenizer_class", "OurTokenizer"),
    ("auto_map", {"AutoTokenizer": ["tokenization_ours.Ours", None]}),
    ("auto_map", {}),
    ("auto_map", None),
    ("legacy", True),
    ("legacy", False),
    ("legacy", None),
    ("add_prefix_space", True),
    ("add_prefix_space", False),
    ("add_prefix_space", None),
    ("add_prefix_space", "x"),
    ("fix_mistral_regex", True),
    ("errors", "strict"),
    ("vocab", {"a": 0}),
    ("merges", []),
    ("post_processor", {"type": "ByteLevel"}),
    ("tokenizer_truncation", {"max_length": 3}),
    ("fast_tokenizer_files", ["tokenizer.4.0.json"]),
    ("init_inputs", ["x"]),
    ("init_inputs", []),
    ("chat_control_tokens", "x"),
    ("backend", "tokenizers"),
    ("model_specific_special_tokens", {"image_token": "<image>"}),
    ("unknown", {"a": [1]}),
)
_NFKC_LOWER = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
_METASPACE = {
    "type": "Metaspace",
    "replacement": "\u2581",
    "prepend_scheme": "always",
    "split": True,
}
_BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
_PIECES: dict[str, tuple[Any, ...]] = {
    "normalizer": (
        None,
        {"type": "NFC"},
        {"type": "NFKD"},
        {"type": "Lowercase"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"},
        {"type": "Replace", "pattern": {"Regex": "("}, "content": "b"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        {"type": "BertNormalizer"},
        {"type": "Sequence", "normalizers": []},
        {"type": "Unheard"},
        _NFKC_LOWER,
    ),
    "pre_tokenizer": (
        None,
        _BYTES,
        {**_BYTES, "add_prefix_space": False},
        {**_BYTES, "use_regex": "x"},
        _METASPACE,
        {**_METASPACE, "prepend_scheme": "first"},
        {**_METASPACE, "prepend_scheme": "never", "split": False},
        {**_METASPACE, "prepend_scheme": "sometimes"},
        {**_METASPACE, "replacement": "__"},
        {"type": "Digits", "individual_digits": True},
        {"type": "Whitespace"},
        {"type": "WhitespaceSplit"},
        {"type": "Punctuation", "behavior": "Isolated"},
        {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False},
        {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES],
        },
    ),
    "post_processor": (
        None,
        {**_BYTES, "trim_offsets": False},
        {"type": "Sequence", "processors": []},
        {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"x": {"id": "x", "ids": [5, 6], "tokens": ["a", "b"]}},
        },
        {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "x", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"x": {"id": "x", "ids": [5, 6], "tokens": ["a", "b"]}},
        },
        {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "x", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"x": {"id": "x", "ids": [100000], "tokens": ["a"]}},
        },
        {"type": "BertProcessing", "sep": [EOS, 5], "cls": [BOS, 6]},
        {
            "type": "RobertaProcessing",
            "sep": [EOS, 5],
            "cls": [BOS, 6],
            "trim_offsets": True,
            "add_prefix_space": True,
        },
    ),
    "decoder": (
        None,
        _BYTES,
        {"type": "Fuse"},
        {"type": "ByteFallback"},
        _METASPACE,
        {**_METASPACE, "prepend_scheme": "never"},
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "BPEDecoder", "suffix": "</w>"},
        {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "Sequence", "decoders": []},
        {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        {
            "type": "Sequence",
            "decoders": [
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 2, "stop": 0},
            ],
        },
        {
            "type": "Sequence",
            "decoders": [_BYTES, {"type": "Strip", "content": " ", "start": 1, "stop": 0}],
        },
    ),
    "truncation": (
        {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        {"direction": "Left", "max_length": 0, "strategy": "OnlyFirst", "stride": 9},
        {"max_length": "x"},
    ),
    "padding": (
        {
            "strategy": {"Fixed": 40},
            "direction": "Left",
            "pad_to_multiple_of": 8,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        },
        {
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        },
        {"strategy": "Unheard"},
    ),
    "version": ("2.0", None, 1),
    "added_tokens": ([], None, {}),
}
_MODEL: tuple[tuple[str, Any], ...] = (
    ("type", "WordLevel"),
    ("type", "Unheard"),
    ("type", None),
    ("unk_token", "<unk>"),
    ("unk_token", "<nowhere>"),
    ("unk_token", None),
    ("unk_id", None),
    ("unk_id", 3),
    ("unk_id", 100_000),
    ("byte_fallback", True),
    ("byte_fallback", False),
    ("byte_fallback", "x"),
    ("ignore_merges", True),
    ("ignore_merges", False),
    ("fuse_unk", True),
    ("fuse_unk", False),
    ("dropout", 0.5),
    ("dropout", 0.0),
    ("dropout", 7),
    ("continuing_subword_prefix", "##"),
    ("continuing_subword_prefix", ""),
    ("end_of_word_suffix", "</w>"),
    ("end_of_word_suffix", ""),
    ("unheard", 1),
)
_IDS: tuple[Any, ...] = (5, "5", 5.0, 5.5, True, None, [], [5, 6], [6, 100_000], ["5"], [[5]])
_MORE_IDS: tuple[Any, ...] = (100_000, -1, {}, {"a": 5}, [None], [5, True], [2**70], 2**70)
_ADDED: tuple[Any, ...] = (
    {},
    [],
    None,
    {"<new>": 7},
    {"<new>": 410},
    {"<new>": 100_000},
    {"<new>": -1},
    {"<new>": "410"},
    {"<new>": None},
    {"the": 3},
    {EOS: 7},
    {TURN: 411, "<new>": 411},
)
_MAP: tuple[tuple[str, Any], ...] = (
    ("padding_side", "left"),
    ("chat_template", "x"),
    ("added_tokens_decoder", {}),
    ("eos_token", {"content": TURN, "lstrip": True, "rstrip": True}),
    ("eos_token", {"content": TURN, "lstrip": "x"}),
    ("eos_token", {"content": TURN, "unheard": True}),
    ("eos_token", {"lstrip": True}),
    ("eos_token", [EOS]),
    ("eos_token", 7),
    ("pad_token", None),
    ("pad_token", "<pad>"),
    ("additional_special_tokens", ["<a>", TURN]),
    ("additional_special_tokens", [{"content": "<a>", "lstrip": True}]),
    ("additional_special_tokens", "x"),
    ("additional_special_tokens", []),
    ("extra_special_tokens", ["<a>", {"content": "<b>", "rstrip": True}]),
    ("extra_special_tokens", {"image_token": "<image>"}),
    ("image_token", "<image>"),
    ("unheard", 1),
)


@cache
def bases() -> dict[str, dict[str, bytes]]:
    """The files of each kind, by name."""
    plain = {"tokenizer_class": "PreTrainedTokenizerFast"}
    byte_level = {**plain, "add_bos_token": True, "clean_up_tokenization_spaces": True}
    llama = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "unk_token": "<unk>"}
    return {
        "byte-level": _files(_byte_level(), "llama", byte_level),
        "byte fallback": _files(_byte_fallback(), "llama", {**plain, "add_bos_token": True}),
        "llama 2": _files(_byte_fallback(), "llama", llama),
        "llama 3": _llama3(),
        "qwen": _qwen(),
        "unigram": _files(_unigram(), "mistral", {**plain, "unk_token": "<unk>"}),
    }


def mutant(seed: int) -> tuple[str, str, dict[str, bytes]]:
    """The kind, what was changed in words, and the files."""
    chance = random.Random(seed)
    kind = chance.choice(sorted(bases()))
    files = dict(bases()[kind])
    return kind, chance.choice(_KINDS)(files, chance), files


def _damage(files: dict[str, bytes], chance: random.Random) -> str:
    name = chance.choice(sorted(files))
    data = files[name]
    how = chance.choice(
        ("missing", "empty", "cut short", "not UTF-8", "BOM", "LFS pointer", "null")
    )
    if how == "missing":
        del files[name]
    else:
        files[name] = {
            "empty": b"",
            "cut short": data[: chance.randrange(1, len(data))],
            "not UTF-8": data[:2] + b"\xff\xfe" + data[2:],
            "BOM": b"\xef\xbb\xbf" + data,
            "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "null": b"null",
        }[how]
    return f"{name} {how}"


def _twice(files: dict[str, bytes], chance: random.Random) -> str:
    """A key that a JSON file has two times, the first time with another value."""
    name = chance.choice(_FILES)
    key = chance.choice(sorted(json.loads(files[name])))
    value = chance.choice(_OTHER_TYPES)
    files[name] = b"{" + _dump({key: value})[1:-1] + b"," + files[name].lstrip()[1:]
    return f"{name}: {key} also {value!r}"


def _contradict(files: dict[str, bytes], chance: random.Random) -> str:
    """A second opinion on a special token."""
    name = chance.choice((SETTINGS, SPECIALS))
    key = chance.choice(("bos_token", "eos_token", "pad_token", "unk_token"))
    token = chance.choice((TURN, "the", "<new>", EOS, ENDS, "", "<unk>"))
    value = chance.choice((token, {"content": token, "lstrip": True, "__type": "AddedToken"}))
    return _set(files, name, key, value)


def _setting(files: dict[str, bytes], chance: random.Random) -> str:
    key, value = chance.choice(_SETTINGS)
    if key == "chat_template" and chance.random() < 0.8:
        files.pop(TEMPLATE)
    return _set(files, SETTINGS, key, value)


def _mapped(files: dict[str, bytes], chance: random.Random) -> str:
    if chance.random() < 0.2:
        _set(files, SETTINGS, "added_tokens_decoder", {})
    return _set(files, SPECIALS, *chance.choice(_MAP))


def _end(files: dict[str, bytes], chance: random.Random) -> str:
    name = chance.choice((GENERATION, GENERATION, CONFIG, SETTINGS))
    key = chance.choice(("eos_token_id", "eos_token_id", "bos_token_id", "pad_token_id"))
    return _set(files, name, key, chance.choice(_IDS + _MORE_IDS))


def _added(files: dict[str, bytes], chance: random.Random) -> str:
    """A file of added tokens, sound or not."""
    right = {t["content"]: t["id"] for t in json.loads(files[TOKENIZER])["added_tokens"]}
    value = chance.choice((right, *_ADDED))
    files[ADDED] = chance.choice((_dump(value), _dump(value), _dump(value), b"{", b"\xff", b""))
    if chance.random() < 0.3:
        _set(files, SETTINGS, "added_tokens_decoder", {})
    return f"{ADDED}: {files[ADDED]!r}"


def _piece(files: dict[str, bytes], chance: random.Random) -> str:
    key = chance.choice(sorted(_PIECES))
    return _set(files, TOKENIZER, key, chance.choice(_PIECES[key]))


def _model(files: dict[str, bytes], chance: random.Random) -> str:
    document = json.loads(files[TOKENIZER])
    model = document["model"]
    how = chance.randrange(7)
    vocabulary, merges = model["vocab"], model.get("merges")
    texts = list(vocabulary) if isinstance(vocabulary, dict) else []
    if how < 3 or not texts:
        key, value = chance.choice(_MODEL)
        model[key] = value
        said = f"{key} = {value!r}"
    elif how == 3:
        text = chance.choice(texts)
        vocabulary[text] = chance.choice((419, 420, 100_000, vocabulary[texts[3]], -1, "x"))
        said = f"{text!r} has id {vocabulary[text]}"
    elif how == 4:
        model["merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
        said = "merges as texts"
    elif how == 5:
        text = chance.choice(texts)
        del vocabulary[text]
        said = f"without {text!r}"
    else:
        model["merges"] = [*merges, chance.choice((["q", "zq"], "q zq", "q", [], ["a"], 7))]
        said = f"merges end in {model['merges'][-1]!r}"
    files[TOKENIZER] = _dump(document)
    return f"{TOKENIZER}: model: {said}"


def _token(files: dict[str, bytes], chance: random.Random) -> str:
    """One of the added tokens, or one more."""
    document = json.loads(files[TOKENIZER])
    tokens = document["added_tokens"]
    token = chance.choice(tokens)
    key = chance.choice(("lstrip", "rstrip", "normalized", "single_word", "special", "id", "new"))
    if key == "id":
        token["id"] = chance.choice((3, 419, 100_000, -1, "x", token["id"] + 1))
    elif key == "new":
        token = {
            **token,
            "content": chance.choice(("<new>", "the", "", TURN, " ", "<|")),
            "id": 417,
        }
        tokens.append(token)
    else:
        token[key] = not token[key]
    if chance.random() < 0.3:
        text = chance.choice(("lstrip", "rstrip", "normalized", "single_word"))
        token[text] = not token[text]
    files[TOKENIZER] = _dump(document)
    return f"{TOKENIZER}: added_tokens: {key}: {token}"


def _templates(files: dict[str, bytes], chance: random.Random) -> str:
    name = chance.choice(("default", "rag", "tool_use"))
    source = chance.choice(
        (b"{{ messages[0].content }}", b"{{ bos_token }}x", b"{% if %}", b"\xff")
    )
    if chance.random() < 0.5:
        files.pop(TEMPLATE)
        _set(files, SETTINGS, "chat_template", chance.choice((_CHAT, None)))
    files[f"{OTHER_TEMPLATES}/{name}.jinja"] = source
    return f"{OTHER_TEMPLATES}: {name}: {source!r}"


def _change(files: dict[str, bytes], chance: random.Random) -> str:
    name = chance.choice(_FILES)
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


_KINDS: tuple[Callable[[dict[str, bytes], random.Random], str], ...] = (
    _added,
    _change,
    _change,
    _contradict,
    _damage,
    _end,
    _mapped,
    _model,
    _piece,
    _piece,
    _setting,
    _setting,
    _templates,
    _token,
    _twice,
)


def _set(files: dict[str, bytes], name: str, key: str, value: Any) -> str:
    files[name] = _dump({**json.loads(files[name]), key: value})
    return f"{name}: {key} = {value!r}"


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


def _files(tokenizer: Tokenizer, model_type: str, settings: dict[str, Any]) -> dict[str, bytes]:
    named = {"bos_token": BOS, "eos_token": EOS}
    end = tokenizer.token_to_id(EOS)
    return {
        CONFIG: _dump(_config(model_type, tokenizer.token_to_id(BOS), end)),
        TOKENIZER: tokenizer.to_str().encode(),
        SETTINGS: _dump({**named, **settings}),
        SPECIALS: _dump(named),
        GENERATION: _dump({"eos_token_id": [end], "temperature": 0.7}),
        TEMPLATE: _CHAT.encode(),
    }


def _config(model_type: str, bos: int | None, eos: Any) -> dict[str, Any]:
    """A model of one layer, as small as they get."""
    return {
        "model_type": model_type,
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 4,
        "intermediate_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 2,
        "max_position_embeddings": 512,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "tie_word_embeddings": True,
    }


def _llama3() -> dict[str, bytes]:
    """The beginning is written by a template behind another post-processor; tokens go whole before
    they are merged."""
    tokenizer = _byte_level()
    document = json.loads(tokenizer.to_str())
    document["model"]["ignore_merges"] = True
    document["normalizer"] = None
    last = document["post_processor"]
    bytes_first = {**_BYTES, "trim_offsets": False}
    document["post_processor"] = {"type": "Sequence", "processors": [bytes_first, last]}
    named = {"bos_token": BOS, "eos_token": TURN}
    bos, ends = tokenizer.token_to_id(BOS), [tokenizer.token_to_id(t) for t in (EOS, TURN)]
    settings = {**named, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    return {
        CONFIG: _dump(_config("llama", bos, ends)),
        TOKENIZER: _dump(document),
        SETTINGS: _dump({**settings, "clean_up_tokenization_spaces": True}),
        SPECIALS: _dump(named),
        GENERATION: _dump({"bos_token_id": bos, "eos_token_id": ends, "do_sample": True}),
        TEMPLATE: _CHAT.encode(),
    }


def _qwen() -> dict[str, bytes]:
    """No beginning, ChatML, and tokens that are declared beside tokenizer.json, too."""
    tokenizer = _byte_level(_QWEN_SPLIT, (TEXT, STARTS, ENDS))
    tokenizer.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    text, end = tokenizer.token_to_id(TEXT), tokenizer.token_to_id(ENDS)
    declared = {
        str(number): {
            "content": token.content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token.special,
        }
        for number, token in tokenizer.get_added_tokens_decoder().items()
    }
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": declared,
        "additional_special_tokens": [STARTS, ENDS],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": ENDS,
        "errors": "replace",
        "model_max_length": 512,
        "pad_token": TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    return {
        CONFIG: _dump({**_config("qwen2", text, end), "use_sliding_window": False}),
        TOKENIZER: tokenizer.to_str().encode(),
        SETTINGS: _dump({**settings, "chat_template": _CHATML}),
        SPECIALS: _dump({"eos_token": {"content": ENDS, "lstrip": False}, "pad_token": TEXT}),
        GENERATION: _dump({"eos_token_id": [end, text], "pad_token_id": text, "top_p": 0.8}),
        ADDED: _dump({token["content"]: int(number) for number, token in declared.items()}),
        TEMPLATE: _CHATML.encode(),
    }


def _dump(document: Any) -> bytes:
    return json.dumps(document).encode()


def _ended(tokenizer: Tokenizer, specials: tuple[str, ...] = (BOS, EOS, TURN)) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in specials])
    if BOS not in specials:
        return tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def _byte_level(split: str = _SPLIT, specials: tuple[str, ...] = (BOS, EOS, TURN)) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(split), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _ended(tokenizer, specials)


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
