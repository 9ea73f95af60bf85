"""How many bytes the values of a generation take in messages, at most; nothing is encoded for it.

A generation must fit one message whole, for calls and grants carry all of it. What grows while it
runs, frames and checkpoints, is cut to size by who sends it.
"""

from __future__ import annotations

from services.common.errors import InvalidArgument
from services.common.generation import SAMPLING, GenerationRequest
from services.common.sampling_fields import Kind

ID_BYTES = 5
"""A varint below 2**32."""
_LOGPROB_BYTES = 9
"""A produced token's own: tag and length of its message, a float behind its tag."""
_TOP_BYTES = 13
"""An alternative: tag and length, an id and a float behind their tags."""
_GENERATION_SHARE = 0.75
"""Of a message; the rest is for stop strings, biases, routes and what a later version adds."""


def token_bytes(request: GenerationRequest) -> int:
    """One produced token, with the logprobs that were asked for."""
    top = request.sampling.top_logprobs
    return ID_BYTES + (0 if top is None else _LOGPROB_BYTES + top * _TOP_BYTES)


def request_bytes(request: GenerationRequest) -> int:
    """The ids that a request carries, its biases and its texts."""
    sampling = request.sampling
    lists = (getattr(sampling, name) for name, row in SAMPLING.items() if row.kind is Kind.IDS)
    ids = len(request.prompt_ids) + sum(map(len, lists))
    grammar = "" if sampling.grammar is None else sampling.grammar.text
    details = "" if request.response is None else request.response.details
    strings = (*request.stop_strings, request.cache_salt, grammar, details, *request.parts.tools)
    texts = sum(len(text.encode()) + ID_BYTES for text in strings)
    return ID_BYTES * ids + _TOP_BYTES * len(sampling.logit_bias) + texts


def most_tokens(request: GenerationRequest, max_message_bytes: int) -> int:
    """Of each choice, so that the generation fits a message whatever it becomes."""
    room_bytes = int(max_message_bytes * _GENERATION_SHARE) - request_bytes(request)
    return max(0, room_bytes // token_bytes(request) // request.choices)


def check_generation_fits(request: GenerationRequest, max_message_bytes: int) -> None:
    """Raises InvalidArgument and names the field for a generation that could outgrow a message."""
    most = most_tokens(request, max_message_bytes)
    if request.sampling.max_tokens > most:
        raise InvalidArgument(
            f"max_tokens {request.sampling.max_tokens} is over the {most} tokens that each of "
            f"{request.choices} choices may have with what is asked about each token",
            field="choices" if request.choices > 1 else "max_tokens",
        )
