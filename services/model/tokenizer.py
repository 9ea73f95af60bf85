"""Text to ids, from a model's tokenizer.json: what the tokenizers library makes of the whole text.

A special token's text is that token where the chat template wrote it, and text where a message
spells it. Nearly always no message does, and the library's own encoder is right. Else a second
encoder takes over: of the same vocabulary, but with each special token under a name of its own that
no message can hold. What the template wrote goes in under those names, and everything around it is
split, normalised and merged as for plain text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Encoder

from services.common.errors import InvalidArgument
from services.model.decoding import parse_vocabulary
from services.model.guard import Guard, unknown_id
from services.model.library import encoded, failing_as, spans, untakeable
from services.model.special_tokens import PAD, SpecialTokens
from services.model.tokenizer_class import AS_THE_FILE, TokenizerClass
from services.model.vocabulary import Vocabulary
from services.model.written import origin_of

TOKENIZER_FILE = "tokenizer.json"
_WRITTEN = re.compile(b"\1+")
_MOST_TRIES = 8
_NONE = SpecialTokens({}, (), None)
_NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})


class Tokenizer:
    """One model's tokenizer; safe to share between threads."""

    def __init__(
        self,
        tokenizer_json: bytes,
        special_tokens: SpecialTokens = _NONE,
        tokenizer_class: TokenizerClass = AS_THE_FILE,
        settings: Mapping[str, Any] = _NO_SETTINGS,
    ) -> None:
        """Raises InvalidArgument for a file that is not understood."""
        with failing_as(_refuse("is not understood")):
            encoder = Encoder.from_buffer(tokenizer_json)
        padding = _padding_token(encoder)
        if padding is not None and PAD not in special_tokens.said:
            special_tokens = special_tokens.naming(PAD, padding)
        self.special_tokens = special_tokens
        """Those that the files beside name, and the one that this file pads with."""
        own = encoder.get_added_tokens_decoder()
        if not own and special_tokens.declared is None and b'"added_tokens"' not in tokenizer_json:
            raise _refuse("added_tokens: is missing", "added_tokens")
        self.written_ids: Mapping[str, int] = {token.content: i for i, token in own.items()}
        """Of the tokens that the file itself adds, by their texts."""
        encoder = tokenizer_class.dressed(encoder, settings)
        with failing_as(_refuse("cannot take the special tokens", "added_tokens")):
            _add(encoder, special_tokens, own)
            if tokenizer_class.bare_specials:
                named = (*special_tokens.named.values(), *special_tokens.others)
                encoder.add_tokens([AddedToken(t.content, special=True) for t in named])
        self._encoder = encoder
        self.is_bpe = type(encoder.model).__name__ == "BPE"
        added = encoder.get_added_tokens_decoder()
        self.special_ids = {t.content: i for i, t in added.items() if t.special and t.content}
        """Ids of the special tokens, by their texts."""
        self.vocabulary: Vocabulary = parse_vocabulary(encoder)
        last = len(self.vocabulary) - 1
        while last in added:
            last -= 1
        self.last_model_id = last
        """The last id of the model's own vocabulary, without added tokens; -1 for none."""
        self._telling = frozenset(self.special_ids.values()) - {unknown_id(encoder)}
        """Ids that only a special token's text can lead to; the unknown token stands for any."""
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        digest = hashlib.blake2b(tokenizer_json, digest_size=16).hexdigest()
        self._guard = Guard(
            encoder,
            digest,
            tokenizer_json,
            lambda other: tokenizer_class.dressed(other, settings),
        )

    @property
    def as_json(self) -> str:
        """As a tokenizer.json that needs no other file."""
        return self._encoder.to_str()

    def encode(self, text: str, *, bare: bool = False) -> list[int]:
        """A prompt as a user wrote it: special tokens' texts are special tokens, and the tokenizer
        adds its own, unless it is to be `bare`. Raises InvalidArgument for a text that the library
        fails on."""
        return encoded(self._encoder, text, "prompt", add_special_tokens=not bare)

    def encode_rendered(self, text: str) -> list[int]:
        """A rendered chat template. Raises InvalidArgument for a text that the library fails on."""
        matches = list(self._special.finditer(text))
        origin = origin_of(text)
        if all(b"\0" not in origin[found.start() : found.end()] for found in matches):
            ids = encoded(self._encoder, text, "messages", add_special_tokens=False)
            if self._told(ids) == [self.special_ids[found[0]] for found in matches]:
                return ids
            if self._all_written(text):
                return ids
        return self.encode_guarded(text)

    def encode_guarded(self, text: str) -> list[int]:
        """The same for any text, whatever its messages spell; slower."""
        plain, origin = str.__str__(text), origin_of(text)
        if self._guard.digest in plain:
            raise InvalidArgument("the text cannot be told from a special token", field="messages")
        runs = (run.span() for run in _WRITTEN.finditer(origin))
        places = [found for run in runs for found in self._special.finditer(plain, *run)]
        for _ in range(_MOST_TRIES):
            ids, unseen = self._guard.encode(plain, [found.span() for found in places])
            if not unseen:
                return ids
            # A token that the library passes over, such as one within a word, is text.
            places = [found for found in places if found.span() not in unseen]
        raise untakeable("messages")

    def _told(self, ids: Iterable[int]) -> list[int]:
        return [token_id for token_id in ids if token_id in self._telling]

    def _all_written(self, text: str) -> bool:
        """Every special token that the library sees stands where the template wrote it."""
        origin = origin_of(text)
        found = spans(self._encoder, text, "messages")
        return all(
            start < end and b"\0" not in origin[start:end]
            for token_id, (start, end) in found
            if token_id in self._telling
        )

    def id_of(self, text: str) -> int | None:
        """The id of a token by its text."""
        token_id: int | None = self._encoder.token_to_id(text)
        return token_id


def _padding_token(encoder: Encoder) -> str | None:
    """What the file says of padding and truncation was for training batches. It is no more than
    loaded, as transformers does, but that the text it pads with has a name."""
    cut = encoder.truncation
    if cut is not None and cut["max_length"] < cut["stride"]:
        raise _refuse("truncation: stride: must not be over max_length", "truncation")
    for field, enable in (
        ("truncation", encoder.enable_truncation),
        ("padding", encoder.enable_padding),
    ):
        said = getattr(encoder, field)
        with failing_as(_refuse(f"{field}: is not understood", field)):
            if said is not None:
                enable(**said)
    text: str | None = encoder.padding["pad_token"] if encoder.padding else None
    encoder.no_truncation()
    encoder.no_padding()
    return text


def _add(encoder: Encoder, special_tokens: SpecialTokens, own: Mapping[int, AddedToken]) -> None:
    """The tokens that are declared, and those named that are not among them (transformers,
    TokenizersBackend). What has a name is special, whatever else is said of it."""
    declared = own if special_tokens.declared is None else special_tokens.declared
    wanted = [declared[token_id] for token_id in sorted(declared)]
    known = {token.content for token in (*encoder.get_added_tokens_decoder().values(), *wanted)}
    new: dict[str, AddedToken] = {}
    for token in (*special_tokens.named.values(), *special_tokens.others):
        if token.content not in known and new.setdefault(token.content, token) != token:
            raise _refuse(f"{token.content!a:.60} is named with other settings", "added_tokens")
    wanted += new.values()
    names = {token.content for token in special_tokens.named.values()}
    for token in wanted:
        if token.content in names:
            token.special = True
    encoder.add_tokens(wanted)


def _refuse(message: str, field: str = TOKENIZER_FILE) -> InvalidArgument:
    return InvalidArgument(f"{TOKENIZER_FILE}: {message}", field=field)
