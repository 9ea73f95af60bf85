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
from collections.abc import Iterable

from tokenizers import Tokenizer as Encoder

from services.common.errors import InvalidArgument
from services.model.decoding import parse_vocabulary
from services.model.guard import Guard, unknown_id
from services.model.library import encoded, failing_as, spans, untakeable
from services.model.special_tokens import SpecialTokens
from services.model.vocabulary import Vocabulary
from services.model.written import origin_of

TOKENIZER_FILE = "tokenizer.json"
_WRITTEN = re.compile(b"\1+")
_MOST_TRIES = 8
_NONE = SpecialTokens({}, (), ())


class Tokenizer:
    """One model's tokenizer; safe to share between threads."""

    def __init__(self, tokenizer_json: bytes, special_tokens: SpecialTokens = _NONE) -> None:
        """Raises InvalidArgument for a file that is not understood."""
        with failing_as(_refuse("is not understood")):
            encoder = Encoder.from_buffer(tokenizer_json)
        # What the file says of these was for training batches.
        encoder.no_truncation()
        encoder.no_padding()
        with failing_as(_refuse("cannot take the special tokens", "added_tokens")):
            _add(encoder, special_tokens)
        self._encoder = encoder
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
        self._guard = Guard(encoder, digest, tokenizer_json)

    def encode(self, text: str) -> list[int]:
        """A prompt as a user wrote it: special tokens' texts are special tokens, and the tokenizer
        adds its own. Raises InvalidArgument for a text that the library fails on."""
        return encoded(self._encoder, text, "prompt", add_special_tokens=True)

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


def _add(encoder: Encoder, special_tokens: SpecialTokens) -> None:
    """What tokenizer.json lacks of the special tokens (transformers, TokenizersBackend)."""
    added = {token.content: token for token in encoder.get_added_tokens_decoder().values()}
    wanted = list(special_tokens.declared)
    known = added.keys() | {token.content for token in wanted}
    if not wanted:  # a token that is named is special, whatever tokenizer.json says of it
        for token in special_tokens.named.values():
            plain = added.get(token.content)
            if plain is not None and not plain.special:
                plain.special = True
                wanted.append(plain)
    for token in (*special_tokens.named.values(), *special_tokens.others):
        if token.content not in known:
            known.add(token.content)
            wanted.append(token)
    encoder.add_tokens(wanted)


def _refuse(message: str, field: str = TOKENIZER_FILE) -> InvalidArgument:
    return InvalidArgument(f"{TOKENIZER_FILE}: {message}", field=field)
