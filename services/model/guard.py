"""An encoder of the same vocabulary whose special tokens go by names that no message can hold.

What the template wrote goes in under those names; everything around it is split, normalised and
merged as it would be around the tokens, and their own texts are nothing but text.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Encoder

from services.common.errors import InvalidArgument
from services.model.library import failing_as, id_of, spans, untakeable


class Guard:
    """Names for one encoder's special tokens, and the encoder that knows them."""

    def __init__(
        self,
        encoder: Encoder,
        digest: str,
        tokenizer_json: bytes,
        dressed: Callable[[Encoder], Encoder],
    ) -> None:
        """`digest` is told by nothing but the file; `dressed` is what became of the file's encoder
        before it was this one. Raises InvalidArgument for a tokenizer that
        cannot tell its special tokens from text."""
        self.digest = digest
        added = encoder.get_added_tokens_decoder()
        specials = [token for token in added.values() if token.special and token.content]
        edges = _edges("".join(token.content for token in added.values()))
        names = {t.content: _name(digest, i, t.content, edges) for i, t in enumerate(specials)}
        self._names = names
        tokens = [added[token_id] for token_id in sorted(added)]
        renamed = [_renamed(token, names) for token in tokens]
        self._encoder = _bare(encoder)
        with failing_as(_refuse("model", "cannot encode a text")):
            self._encoder.add_tokens(renamed)
            spells = self._spells(encoder, names)
        with failing_as(_refuse("added_tokens", "special tokens cannot be told from text")):
            if spells:
                self._encoder = _bare(dressed(Encoder.from_str(_without(tokenizer_json, names))))
                self._encoder.add_tokens(renamed)
        ids = {
            id_of(self._encoder, names.get(text, text)): id_of(encoder, text)
            for text in (token.content for token in tokens)
        }
        self._true_ids = {own: true for own, true in ids.items() if own != true}
        self._special_ids = {id_of(self._encoder, name) for name in names.values()}
        self._spelt_ids = (
            {id_of(encoder, text) for text in names} - ids.keys() - {unknown_id(encoder)}
        )
        """What must not come out under its own id: it was no name that led there."""

    def encode(
        self, text: str, places: list[tuple[int, int]]
    ) -> tuple[list[int], set[tuple[int, int]]]:
        """Ids of a text whose special tokens stand in these places, and those places where the
        library saw none. Raises InvalidArgument."""
        parts, position, length, named = [], 0, 0, {}
        for start, end in places:
            name = self._names[text[start:end]]
            parts += [text[position:start], name]
            length += start - position
            named[length] = (start, end)
            length += len(name)
            position = end
        found = spans(self._encoder, "".join([*parts, text[position:]]), "messages")
        if any(token_id in self._spelt_ids for token_id, _ in found):
            raise untakeable("messages")
        starts, seen = sorted(named), set()
        for token_id, (start, end) in found:
            at = bisect_left(starts, start)  # stripped white space is part of the token
            if token_id in self._special_ids and at < len(starts) and starts[at] < end:
                seen.add(starts[at])
        unseen = {place for start, place in named.items() if start not in seen}
        return [self._true_ids.get(token_id, token_id) for token_id, _ in found], unseen

    def _spells(self, encoder: Encoder, names: Mapping[str, str]) -> bool:
        """The model alone makes a special token out of some token's text: at a text's start, behind
        a letter, or behind another special token."""
        token = next(iter(names.values()), "")
        places = [before + text for text in names for before in ("", "a", token)]
        found = self._encoder.encode_batch_fast(places, add_special_tokens=False)
        ids = {id_of(encoder, text) for text in names}
        ids -= {unknown_id(encoder), self._encoder.token_to_id(token)}
        return any(not ids.isdisjoint(encoding.ids) for encoding in found)


def unknown_id(encoder: Encoder) -> int | None:
    """The id that stands for whatever the vocabulary has no other for."""
    model: Any = encoder.model
    text = getattr(model, "unk_token", None)
    token_id: int | None = getattr(model, "unk_id", None)
    return token_id if text is None else encoder.token_to_id(text)


def _edges(texts: str) -> tuple[str, str]:
    """A letter and a mark that stand in no added token, so that none can begin in a name; no
    normaliser changes them."""
    letter = next((c for c in "\u1200\u1203\u1208\u120b" if c not in texts), None)
    mark = next((c for c in "\u2020\u2021\u2016\u203b" if c not in texts), None)
    if letter is None or mark is None:
        raise _refuse("added_tokens", "special tokens cannot be told from text")
    return letter, mark


def _name(digest: str, number: int, text: str, edges: tuple[str, str]) -> str:
    """At its ends a letter where the token's text has one."""
    letter, mark = edges
    before, after = (letter if re.match(r"\w", c) else mark for c in (text[0], text[-1]))
    return f"{before}{digest}x{number}{after}"


def _bare(encoder: Encoder) -> Encoder:
    """The same model, without any added token."""
    bare = Encoder(encoder.model)
    if encoder.normalizer is not None:
        bare.normalizer = encoder.normalizer
    if encoder.pre_tokenizer is not None:
        bare.pre_tokenizer = encoder.pre_tokenizer
    return bare


def _renamed(token: AddedToken, names: Mapping[str, str]) -> AddedToken:
    return AddedToken(
        names.get(token.content, token.content),
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


def _without(tokenizer_json: bytes, names: Mapping[str, str]) -> str:
    """The file, its model unable to make one of these texts. A text of one character stays: it
    may be all that the model has for it."""
    description = json.loads(tokenizer_json)
    names = {text: name for text, name in names.items() if len(text) > 1}
    model = description["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): i for text, i in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(entry[0], entry[0]), *entry[1:]] for entry in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        merges = (m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"])
        model["merges"] = [m for m in merges if names.keys().isdisjoint((*m, "".join(m)))]
    return json.dumps(description | {"added_tokens": [], "post_processor": None})


def _refuse(field: str, message: str) -> InvalidArgument:
    return InvalidArgument(f"tokenizer.json: {field}: {message}", field=field)
