"""An ask becomes a request: its prompt is tokenised, and what it left open is settled."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from services.common.errors import AlreadyExists
from services.common.generation import GenerationRequest
from services.common.message_sizes import check_generation_fits, most_tokens
from services.router.ask import Ask, Drawn, ModelLimits
from services.router.model import ServedModel

LONG_PROMPT_BYTES = 4096
LONG_CONVERSATION = 64
"""What is longer than either is rendered and tokenised beside the event loop."""


async def resolve(
    ask: Ask, model: ServedModel, facts: ModelLimits, drawn: Drawn
) -> GenerationRequest:
    """The request. Raises InvalidArgument when it does not fit the model, or a message."""
    ask.check_size(facts.max_positions, model.longest_piece_bytes)
    if ask.prompt_bytes > LONG_PROMPT_BYTES or ask.turns > LONG_CONVERSATION:
        made = asyncio.to_thread(model.prompt_ids, ask, drawn.created_unix_s)
        prompt_ids = await _to_its_end(asyncio.create_task(made))
    else:
        prompt_ids = model.prompt_ids(ask, drawn.created_unix_s)
    request = ask.resolve(facts, prompt_ids, drawn)
    if ask.max_tokens is None:  # what fits is the default, as what the context holds
        fits = max(1, most_tokens(request, facts.max_message_bytes))
        sampling = request.sampling
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, fits))
        request = replace(request, sampling=sampling)
    check_generation_fits(request, facts.max_message_bytes)
    return request


async def check_same(
    ask: Ask, held: GenerationRequest, model: ServedModel, facts: ModelLimits
) -> None:
    """Raises AlreadyExists when the ask would be another request than what is held."""
    if ask.max_tokens is None:
        positions = len(held.prompt_ids) + held.sampling.max_tokens
        facts = replace(facts, max_positions=positions)
    drawn = Drawn(held.generation_id, held.sampling.seed, held.created_unix_s)
    request = await resolve(ask, model, facts, drawn)
    if replace(request, numerics_class=held.numerics_class) != held:
        raise AlreadyExists("another request has this id", field="generation_id")


async def _to_its_end(made: asyncio.Task[list[int]]) -> list[int]:
    """Nothing ends a thread: whoever is cancelled meanwhile counts until it is done, else any
    number of prompts could be in the making whose callers left."""
    try:
        return await asyncio.shield(made)
    except asyncio.CancelledError:
        await asyncio.gather(made, return_exceptions=True)
        raise
