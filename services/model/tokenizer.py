"""Text to ids, from a model's tokenizer.json: what the tokenizers library makes of the whole text.

A special token's text is that token where the chat template wrote it, and text where a message
spells it. Nearly always no message does, and the library's own encoder is right. Else a second
encoder takes over: of the same vocabulary, but with each special token under a name of its own that
no message can hold. What the template wrote goes in under those names, and everything around it is
split, normalised and merged as for plain text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer as Encoder
from tokenizers.processors import TemplateProcessing

from services.common.errors import InvalidArgument, ShuntError
from services.model.decoding import parse_vocabulary
from services.model.special_tokens import CONFIG_FILE, SpecialTokens
from services.model.vocabulary import Vocabulary
from services.model.written import origin_of

TOKENIZER_FILE = "tokenizer.json"
_WRITTEN = re.compile(b"\1+")
_NONE = SpecialTokens({}, (), ())


class Tokenizer:
    """One model's tokenizer; safe to share between threads."""

    def __init__(
        self,
        tokenizer_json: bytes,
        special_tokens: SpecialTokens = _NONE,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """`settings` are those of tokenizer_config.json. Raises InvalidArgument for files that are
        not understood."""
        with _failing_as(_refuse("is not understood")):
            encoder = Encoder.from_buffer(tokenizer_json)
        # What the file says of these was for training batches.
        encoder.no_truncation()
        encoder.no_padding()
        with _failing_as(_refuse("cannot take the special tokens", "added_tokens")):
            _add(encoder, special_tokens)
        _set_ends(encoder, special_tokens, settings or {})
        self._encoder = encoder
        description = json.loads(encoder.to_str())
        added = encoder.get_added_tokens_decoder()
        self.special_ids = {t.content: i for i, t in added.items() if t.special and t.content}
        """Ids of the special tokens, by their texts."""
        self.vocabulary: Vocabulary = parse_vocabulary(encoder, description["decoder"])
        unknown = _unknown_id(encoder, description["model"])
        self._telling = frozenset(self.special_ids.values()) - {unknown}
        """Ids that only a special token's text can lead to; the unknown token stands for any."""
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        lone = (t.content for t in added.values() if t.special and t.single_word)
        self._single_word = frozenset(lone)
        digest = hashlib.blake2b(tokenizer_json, digest_size=16).hexdigest()
        self._guard = _Guard(digest, description, list(self.special_ids), encoder)

    def encode(self, text: str) -> list[int]:
        """A prompt as a user wrote it: special tokens' texts are special tokens, and the tokenizer
        adds its own. Raises InvalidArgument for a text that the library fails on."""
        return _encoded(self._encoder, text, "prompt", add_special_tokens=True)

    def encode_rendered(self, text: str) -> list[int]:
        """A rendered chat template. Raises InvalidArgument for a text that the library fails on."""
        matches = list(self._special.finditer(text))
        origin = origin_of(text)
        if all(b"\0" not in origin[found.start() : found.end()] for found in matches):
            ids = _encoded(self._encoder, text, "messages", add_special_tokens=False)
            if self._told(ids) == self._told(self.special_ids[found[0]] for found in matches):
                return ids
        return self.encode_guarded(text)

    def encode_guarded(self, text: str) -> list[int]:
        """The same for any text, whatever its messages spell; slower."""
        named, expected, position = [], [], 0
        for run in _WRITTEN.finditer(origin_of(text)):
            for found in self._special.finditer(text, run.start(), run.end()):
                if found[0] in self._single_word and _within_word(text, *found.span()):
                    continue
                named += [text[position : found.start()], self._guard.names[found[0]]]
                expected.append(self.special_ids[found[0]])
                position = found.end()
        if self._guard.digest in text:
            raise InvalidArgument("the text cannot be told from a special token", field="messages")
        ids = self._guard.encode("".join(map(str, [*named, text[position:]])))
        if self._told(ids) != self._told(expected):
            raise _untakeable("messages")
        return ids

    def _told(self, ids: Any) -> list[int]:
        return [token_id for token_id in ids if token_id in self._telling]

    def id_of(self, text: str) -> int | None:
        """The id of a token by its text."""
        token_id: int | None = self._encoder.token_to_id(text)
        return token_id


class _Guard:
    """The encoder whose special tokens go by names that nothing else is called."""

    def __init__(
        self, digest: str, description: dict[str, Any], specials: list[str], encoder: Encoder
    ) -> None:
        self.digest = digest
        self.names = {text: _name(digest, number, text) for number, text in enumerate(specials)}
        added = description["added_tokens"]
        model, names = description["model"], self.names
        others = [t["content"] for t in added if t["content"] not in names]
        description = description | {
            "post_processor": None,
            "added_tokens": [t | {"content": names.get(t["content"], t["content"])} for t in added],
            "model": _renamed(model, {t: n for t, n in names.items() if len(t) > 1}),
        }
        with _failing_as(_refuse("special tokens cannot be told from text", "added_tokens")):
            self._encoder = Encoder.from_str(json.dumps(description))
        pairs = [(name, text) for text, name in names.items()] + [(t, t) for t in others]
        ids = [(_id(self._encoder, own), _id(encoder, true)) for own, true in pairs]
        self._true_ids = {own: true for own, true in ids if own != true}
        self._spelt_ids = {true for own, true in ids if own != true} - {own for own, _ in ids}
        """Ids of special tokens that are, too, how the model spells an ordinary text."""

    def encode(self, text: str) -> list[int]:
        ids = _encoded(self._encoder, text, "messages", add_special_tokens=False)
        if not self._spelt_ids.isdisjoint(ids):
            raise _untakeable("messages")
        return [self._true_ids.get(i, i) for i in ids] if self._true_ids else ids


def _name(digest: str, number: int, text: str) -> str:
    """Letters and digits, so that no normaliser changes it; at its ends a word where the token's
    text has one."""
    before, after = ("" if _is_word(character) else "|" for character in (text[0], text[-1]))
    return f"{before}{digest}x{number}z{after}"


def _renamed(model: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The model with special tokens renamed in its vocabulary, and no merge that makes one."""
    changed = dict(model)
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        changed["vocab"] = {names.get(text, text): i for text, i in vocabulary.items()}
    else:
        changed["vocab"] = [[names.get(entry[0], entry[0]), *entry[1:]] for entry in vocabulary]
    if model.get("unk_token") in names:
        changed["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        merges = (m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"])
        changed["merges"] = [m for m in merges if names.keys().isdisjoint((*m, "".join(m)))]
    return changed


def _add(encoder: Encoder, special_tokens: SpecialTokens) -> None:
    """What tokenizer.json lacks of the special tokens (transformers, TokenizersBackend)."""
    wanted = list(special_tokens.declared)
    known = {token.content for token in encoder.get_added_tokens_decoder().values()}
    known |= {token.content for token in wanted}
    for token in (*special_tokens.named.values(), *special_tokens.others):
        if token.content not in known:
            known.add(token.content)
            wanted.append(token)
    encoder.add_tokens(wanted)


def _set_ends(encoder: Encoder, special_tokens: SpecialTokens, settings: Mapping[str, Any]) -> None:
    """add_bos_token and add_eos_token, where either is named, decide what surrounds a text."""
    if settings.get("split_special_tokens"):
        raise InvalidArgument(
            f"{CONFIG_FILE}: split_special_tokens: must be false", field="split_special_tokens"
        )
    if not {"add_bos_token", "add_eos_token"} & settings.keys():
        return
    around: list[tuple[str, int]] = []
    single = ["$A"]
    for name, setting in (("bos_token", "add_bos_token"), ("eos_token", "add_eos_token")):
        token = special_tokens.named.get(name)
        if not settings.get(setting) or token is None:
            continue
        around.append((token.content, _id(encoder, token.content)))
        single.insert(0 if name == "bos_token" else len(single), token.content)
    encoder.post_processor = TemplateProcessing(single=single, special_tokens=around)


def _unknown_id(encoder: Encoder, model: Mapping[str, Any]) -> int | None:
    unknown = model.get("unk_id")
    if model.get("unk_token") is not None:
        unknown = encoder.token_to_id(model["unk_token"])
    return unknown


def _id(encoder: Encoder, text: str) -> int:
    token_id = encoder.token_to_id(text)
    if token_id is None:
        raise _refuse(f"has no id for {text!a}", "added_tokens")
    return token_id


def _is_word(character: str) -> bool:
    return re.fullmatch(r"\w", character) is not None


def _within_word(text: str, start: int, end: int) -> bool:
    return (start > 0 and _is_word(text[start - 1])) or (end < len(text) and _is_word(text[end]))


@contextmanager
def _failing_as(error: ShuntError) -> Iterator[None]:
    """The library raises nothing narrower than Exception, and a panic within it is not even one."""
    try:
        yield
    except BaseException as failure:
        if isinstance(failure, Exception) or type(failure).__name__ == "PanicException":
            raise error from failure
        raise


def _encoded(encoder: Encoder, text: str, field: str, *, add_special_tokens: bool) -> list[int]:
    """By the batch call: it lets other threads run meanwhile, and computes no offsets."""
    with _failing_as(_untakeable(field)):
        (found,) = encoder.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    ids: list[int] = found.ids
    return ids


def _untakeable(field: str) -> InvalidArgument:
    return InvalidArgument("the model's tokenizer cannot take this", field=field)


def _refuse(message: str, field: str = TOKENIZER_FILE) -> InvalidArgument:
    return InvalidArgument(f"{TOKENIZER_FILE}: {message}", field=field)
