"""What a tokenizer.json's `decoder` makes of each token, as bytes.

A text is shown token by token, so a decoder is understood only where each token's part of the text
is its own, but for the text's start.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import Tokenizer as Encoder

from services.common.errors import InvalidArgument
from services.model.vocabulary import BYTEWISE, Vocabulary

MAX_IDS = 1 << 22
ToBytes = Callable[[str], bytes]


def parse_vocabulary(encoder: Encoder) -> Vocabulary:
    """The vocabulary under tokenizer.json's `decoder`. Raises InvalidArgument naming the field."""
    stages = _stages(encoder.decoder and json.loads(encoder.decoder.__getstate__()))
    if [stage["type"] for stage in stages if stage["type"] != "Fuse"] == ["ByteLevel"]:
        return Vocabulary(*_pieces(encoder, _texts(encoder), _byte_level))
    decoding, texts = _Decoding(stages), _texts(encoder)
    shown, labels = _pieces(encoder, texts, decoding.to_bytes)
    first = {
        token_id: decoding.to_bytes(text.replace(decoding.metaspace, ""))
        for token_id, text in enumerate(texts)
        if decoding.metaspace and decoding.metaspace in text and shown[token_id]
    }
    errors = BYTEWISE if decoding.byte_fallback else "replace"
    return Vocabulary(shown, labels, first, decoding.leading_spaces, errors)


class _Decoding:
    """A sequence of stages, each of which was understood."""

    def __init__(self, stages: list[Mapping[str, Any]]) -> None:
        self.byte_fallback = False
        self.leading_spaces = 0
        self.metaspace = ""
        """This character counts for nothing in the first token."""
        self._replacements: list[tuple[str, str]] = []
        fused = False
        for stage in stages:
            kind = stage["type"]
            if kind == "Fuse":
                fused = True
            elif kind == "ByteFallback" and not fused:
                self.byte_fallback = True
            elif kind == "Replace":
                self._replace(stage, fused)
            elif kind == "Metaspace" and not fused:
                self._metaspace(stage)
            elif kind == "Strip" and fused:
                self._strip(stage)
            else:
                raise _refuse(f"{kind}: is not understood here")

    def to_bytes(self, text: str) -> bytes:
        """What a token adds that is not the first."""
        byte = _BYTE_TOKEN.fullmatch(text) if self.byte_fallback else None
        if byte:
            return bytes([int(byte[1], 16)])
        for pattern, content in self._replacements:
            text = text.replace(pattern, content)
        return text.encode()

    def _replace(self, stage: Mapping[str, Any], fused: bool) -> None:
        pattern, content = stage.get("pattern"), stage.get("content")
        found = pattern.get("String") if isinstance(pattern, Mapping) else None
        if not isinstance(found, str) or not found or not isinstance(content, str):
            raise _refuse("Replace: replaces one text by another")
        if fused and len(found) > 1:
            raise _refuse("Replace: a text of several tokens is not replaced")
        self._replacements.append((found, content))

    def _metaspace(self, stage: Mapping[str, Any]) -> None:
        mark = stage.get("replacement")
        if not isinstance(mark, str) or len(mark) != 1:
            raise _refuse("Metaspace: replacement must be one character")
        scheme = stage.get("prepend_scheme", "always" if stage.get("add_prefix_space", True) else 0)
        if scheme in ("always", "first"):
            self.metaspace = mark
        self._replacements.append((mark, " "))

    def _strip(self, stage: Mapping[str, Any]) -> None:
        start, stop = stage.get("start"), stage.get("stop")
        if type(start) is not int or start < 0 or (start and stage.get("content") != " "):
            raise _refuse("Strip: strips spaces at the start")
        if stop:
            raise _refuse("Strip: a text that is shown as it comes is not stripped at its end")
        self.leading_spaces += start


def _texts(encoder: Encoder) -> list[str]:
    """Tokens by id. The ids may have holes: how many there are does not tell which is the last."""
    ids = encoder.get_vocab(with_added_tokens=True)
    size = max(ids.values(), default=-1) + 1
    if size > MAX_IDS:
        raise InvalidArgument(
            f"tokenizer.json: model.vocab: has ids of {MAX_IDS} and over", field="model.vocab"
        )
    if len(set(ids.values())) < len(ids):
        raise InvalidArgument(
            "tokenizer.json: model.vocab: two tokens have the same id", field="model.vocab"
        )
    texts = [""] * size
    for text, token_id in ids.items():
        texts[token_id] = text
    for token_id in encoder.get_added_tokens_decoder():
        texts[token_id] = encoder.id_to_token(token_id) or ""
    return texts


def _pieces(
    encoder: Encoder, texts: list[str], to_bytes: ToBytes
) -> tuple[list[bytes], list[bytes]]:
    """What each id shows, and what it is called. The library shows a special token that its own
    normaliser made another text of."""
    labels = [to_bytes(text) for text in texts]
    shown = list(labels)
    for token_id, token in encoder.get_added_tokens_decoder().items():
        if token.special and texts[token_id] == token.content:
            shown[token_id] = b""
    return shown, labels


def _stages(decoder: Any) -> list[Mapping[str, Any]]:
    if decoder is None:
        raise _refuse("is missing")
    found = decoder.get("decoders") if decoder.get("type") == "Sequence" else [decoder]
    stages: list[Mapping[str, Any]] = []
    for stage in found:
        stages += _stages(stage) if stage.get("type") == "Sequence" else [stage]
    return stages


def _byte_alphabet() -> dict[str, int]:
    """Printable stand-ins of the 256 bytes (GPT-2, encoder.py, bytes_to_unicode)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    alphabet = {chr(byte): byte for byte in plain}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()
# Such a map is quick only where byte 0 is its own character.
_QUICK = codecs.charmap_build("\0" + "".join(sorted(_ALPHABET, key=_ALPHABET.__getitem__))[1:])
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level(text: str) -> bytes:
    try:
        if "\0" not in text:
            return codecs.charmap_encode(text, "strict", _QUICK)[0]
    except UnicodeEncodeError:
        pass  # a character of byte 0, or of none
    try:
        return bytes(_ALPHABET[character] for character in text)
    except KeyError:
        return text.encode()


def _refuse(message: str) -> InvalidArgument:
    return InvalidArgument(f"tokenizer.json: decoder: {message}", field="decoder")
