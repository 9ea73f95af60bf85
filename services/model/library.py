"""Calls of the tokenizers library, which raises nothing narrower than Exception and may panic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tokenizers import Tokenizer as Encoder

from services.common.errors import InvalidArgument, ShuntError


@contextmanager
def failing_as(error: ShuntError) -> Iterator[None]:
    """Raises this error for whatever the library raises; a panic within it is no Exception."""
    try:
        yield
    except BaseException as failure:
        if isinstance(failure, Exception) or type(failure).__name__ == "PanicException":
            raise error from failure
        raise


def encoded(encoder: Encoder, text: str, field: str, *, add_special_tokens: bool) -> list[int]:
    """By the batch call: it lets other threads run meanwhile, and computes no offsets."""
    with failing_as(untakeable(field)):
        (found,) = encoder.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    ids: list[int] = found.ids
    return ids


def spans(encoder: Encoder, text: str, field: str) -> list[tuple[int, tuple[int, int]]]:
    """Ids, and the characters that each stands for; no special token is added."""
    with failing_as(untakeable(field)):
        (found,) = encoder.encode_batch([text], add_special_tokens=False)
    return list(zip(found.ids, found.offsets, strict=True))


def id_of(encoder: Encoder, text: str) -> int:
    """The id of a token that must be there. Raises InvalidArgument."""
    token_id: int | None = encoder.token_to_id(text)
    if token_id is None:
        raise InvalidArgument(
            f"tokenizer.json: added_tokens: {text!a} has no id", field="added_tokens"
        )
    return token_id


def untakeable(field: str) -> InvalidArgument:
    """For a text that the library fails on."""
    return InvalidArgument("the model's tokenizer cannot take this", field=field)
