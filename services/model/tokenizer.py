"""Text to ids and ids to bytes, from a model's tokenizer.json.

Two encoders of one vocabulary: one knows special tokens, the other takes their text for text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer as Encoder

from services.common.errors import FailedPrecondition, InvalidArgument, ShuntError
from services.model.vocabulary import Vocabulary

MAX_IDS = 1 << 22


class Tokenizer:
    """One model's tokenizer; safe to share between threads."""

    def __init__(self, tokenizer_json: bytes) -> None:
        """Raises FailedPrecondition for a file that is not understood."""
        with _failing_as(FailedPrecondition("tokenizer.json is not understood")):
            self._encoder = Encoder.from_buffer(tokenizer_json)
            self._plain = Encoder.from_buffer(tokenizer_json)
        self._plain.encode_special_tokens = True
        for encoder in (self._encoder, self._plain):
            # What the file says of these was for training batches.
            encoder.no_truncation()
            encoder.no_padding()
        added = self._encoder.get_added_tokens_decoder()
        self.special_texts = tuple(
            sorted({t.content for t in added.values() if t.special and t.content})
        )
        """Texts of the special tokens."""
        self._special_ids = {t.content: token_id for token_id, t in added.items() if t.special}
        longest_first = sorted(self.special_texts, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.vocabulary = _vocabulary(self._encoder, json.loads(tokenizer_json).get("decoder"))

    def encode(self, text: str) -> list[int]:
        """A prompt as a user wrote it: special tokens' texts are special tokens, and the tokenizer
        adds its own. Raises InvalidArgument for a text that the library fails on."""
        return _encoded(self._encoder, text, "prompt", add_special_tokens=True)

    def encode_rendered(self, text: str, mark: str) -> list[int]:
        """A rendered chat template; `mark` stands inside what must not become a special token.

        Raises InvalidArgument for a text that the library fails on.
        """
        ids: list[int] = []
        position = 0
        for found in self._special.finditer(text):
            if len(found[0]) == 1 and mark and text.startswith(mark, found.end()):
                continue  # nothing fits inside one character: its mark stands behind it
            ids += self._encode_plain(text[position : found.start()], mark)
            ids.append(self._special_ids[found[0]])
            position = found.end()
        return ids + self._encode_plain(text[position:], mark)

    def _encode_plain(self, text: str, mark: str) -> list[int]:
        if not text:
            return []
        plain = text.replace(mark, "") if mark else text
        return _encoded(self._plain, plain, "messages", add_special_tokens=False)

    def id_of(self, text: str) -> int | None:
        """The id of a token by its text."""
        token_id: int | None = self._encoder.token_to_id(text)
        return token_id


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
    with _failing_as(InvalidArgument("the model's tokenizer cannot take this", field=field)):
        (found,) = encoder.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    ids: list[int] = found.ids
    return ids


def _vocabulary(encoder: Encoder, decoder: Any) -> Vocabulary:
    stages = _stages(decoder)
    kinds = {stage.get("type") for stage in stages}
    if "ByteLevel" in kinds:
        to_bytes, strips = _byte_level, False
    elif "ByteFallback" in kinds or "Metaspace" in kinds:
        to_bytes, strips = _byte_fallback, any(map(_strips_first_space, stages))
    else:
        raise FailedPrecondition(f"decoder {sorted(map(str, kinds))} is not known")
    added = encoder.get_added_tokens_decoder()
    # The ids may have holes: as many as there are does not tell which is the last.
    size = max(encoder.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if size > MAX_IDS:
        raise FailedPrecondition(f"tokenizer.json has ids of {MAX_IDS} and over")
    shown, labels = [], []
    for token_id in range(size):
        token = added.get(token_id)
        text = encoder.id_to_token(token_id) or ""
        label = to_bytes(text)
        labels.append(label)
        shown.append(b"" if token is not None and token.special else label)
    return Vocabulary(shown, labels, strips)


def _stages(decoder: Any) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [stage for stage in decoder.get("decoders", ()) if isinstance(stage, dict)]
    return [decoder]


def _strips_first_space(stage: dict[str, Any]) -> bool:
    if stage.get("type") == "Metaspace":
        return stage.get("prepend_scheme") != "never"
    return stage.get("type") == "Strip" and stage.get("start") != 0


def _byte_alphabet() -> dict[str, int]:
    """Printable stand-ins of the 256 bytes (GPT-2, encoder.py, bytes_to_unicode)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    alphabet = {chr(byte): byte for byte in plain}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level(text: str) -> bytes:
    try:
        return bytes(_ALPHABET[character] for character in text)
    except KeyError:
        return text.encode()


def _byte_fallback(text: str) -> bytes:
    found = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(found[1], 16)]) if found else text.replace("\u2581", " ").encode()
