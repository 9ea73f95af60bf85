"""What each token id adds to a text, as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Bytes by id; concatenated, they are a text's UTF-8. Ids behind the last add nothing."""

    shown: Sequence[bytes]
    """What a reader sees of an id: nothing of a special token."""
    labels: Sequence[bytes]
    """The name of an id in log probabilities: a special token's own text too."""
    strips_first_space: bool = False
    """The text's first space belongs to the encoding, not to the text."""

    def __len__(self) -> int:
        return len(self.shown)

    def piece(self, token_id: int) -> bytes:
        """What an id adds to a text."""
        return self.shown[token_id] if token_id < len(self.shown) else b""

    def label(self, token_id: int) -> bytes:
        """An id's name."""
        return self.labels[token_id] if token_id < len(self.labels) else b""
