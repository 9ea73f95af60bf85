"""What each token id adds to a text, as bytes."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

BYTEWISE = "replace-each-byte"
"""Decoding errors: a replacement character for every byte, as SentencePiece does."""
codecs.register_error(BYTEWISE, lambda e: ("\ufffd" * (e.end - e.start), e.end))  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Bytes by id; concatenated, they are a text's UTF-8. Ids behind the last add nothing."""

    shown: Sequence[bytes]
    """What a reader sees of an id: nothing of a special token."""
    labels: Sequence[bytes]
    """The name of an id in log probabilities: a special token's own text too."""
    first: Mapping[int, bytes] = field(default_factory=lambda: MappingProxyType({}))
    """What an id adds that is the first of a text to be seen, where that differs."""
    leading_spaces: int = 0
    """So many spaces at a text's start belong to the encoding, not to the text."""
    errors: str = "replace"
    """How bytes that are no UTF-8 are decoded."""

    def showing(self, texts: Iterable[str]) -> Vocabulary:
        """The same, and a reader sees these special tokens as their own texts."""
        wanted = {text.encode() for text in texts}
        hidden = [i for i, label in enumerate(self.labels) if label in wanted]
        shown = list(self.shown)
        for token_id in hidden:
            shown[token_id] = self.labels[token_id]
        return replace(self, shown=shown)

    def __len__(self) -> int:
        return len(self.shown)

    def piece(self, token_id: int) -> bytes:
        """What an id adds to a text."""
        return self.shown[token_id] if token_id < len(self.shown) else b""

    def label(self, token_id: int) -> bytes:
        """An id's name."""
        return self.labels[token_id] if token_id < len(self.labels) else b""


class Pieces:
    """The bytes of a text, id by id: its start is not like the rest."""

    __slots__ = ("_first", "_leading_spaces", "_vocabulary")

    def __init__(self, vocabulary: Vocabulary, before: Iterable[int] = ()) -> None:
        """The text goes on behind the ids `before` it."""
        self._vocabulary = vocabulary
        self._first = bool(vocabulary.first)
        self._leading_spaces = vocabulary.leading_spaces
        for token_id in before:
            if not (self._first or self._leading_spaces):
                break
            self.take(token_id)

    def take(self, token_id: int) -> bytes:
        """What the next id adds."""
        piece = self._vocabulary.piece(token_id)
        if self._first and piece:
            self._first = False
            piece = self._vocabulary.first.get(token_id, piece)
        if self._leading_spaces and piece:
            rest = piece.lstrip(b" ")
            spaces = min(self._leading_spaces, len(piece) - len(rest))
            piece = piece[spaces:]
            self._leading_spaces = 0 if piece else self._leading_spaces - spaces
        return piece
