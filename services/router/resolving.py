"""An ask becomes a request: its prompt is tokenised, and what it left open is settled."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TypeVar

from services.common.errors import AlreadyExists
from services.common.generation import PLAIN, GenerationRequest, Grammar
from services.common.message_sizes import check_generation_fits, most_tokens
from services.model.grammar import LIBRARY
from services.router.ask import Ask, Drawn, ModelLimits
from services.router.model import Prompt, ServedModel

T = TypeVar("T")
LONG_PROMPT_BYTES = 4096
LONG_CONVERSATION = 64
"""What is longer than either is rendered and tokenised beside the event loop."""


async def resolve(
    ask: Ask, model: ServedModel, facts: ModelLimits, drawn: Drawn
) -> GenerationRequest:
    """The request. Raises InvalidArgument when it does not fit the model, or a message."""
    ask.check_size(facts.max_positions, model.longest_piece_bytes)
    prompt = await prompt_of(ask, model, drawn.created_unix_s)
    request = ask.resolve(facts, prompt.ids, drawn)
    if prompt.parts != PLAIN:
        request = replace(request, parts=prompt.parts)
    if ask.grammar or ask.tools is not None:
        checked = asyncio.to_thread(model.grammar, ask, prompt.parts)
        grammar = Grammar(await _to_its_end(asyncio.create_task(checked)), LIBRARY)
        request = replace(request, sampling=replace(request.sampling, grammar=grammar))
    if ask.max_tokens is None:  # what fits is the default, as what the context holds
        fits = max(1, most_tokens(request, facts.max_message_bytes))
        sampling = request.sampling
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, fits))
        request = replace(request, sampling=sampling)
    check_generation_fits(request, facts.max_message_bytes)
    return request


async def prompt_of(ask: Ask, model: ServedModel, created_unix_s: int) -> Prompt:
    """Raises InvalidArgument for a prompt that the model cannot take."""
    short = ask.prompt_bytes <= LONG_PROMPT_BYTES and ask.turns <= LONG_CONVERSATION
    if short and ask.tools is None:
        return model.prompt(ask, created_unix_s)
    made = asyncio.to_thread(model.prompt, ask, created_unix_s)
    return await _to_its_end(asyncio.create_task(made))


async def check_same(
    ask: Ask, held: GenerationRequest, model: ServedModel, facts: ModelLimits
) -> None:
    """Raises AlreadyExists when the ask would be another request than what is held."""
    if ask.max_tokens is None:
        positions = len(held.prompt_ids) + held.sampling.max_tokens
        facts = replace(facts, max_positions=positions)
    drawn = Drawn(held.generation_id, held.sampling.seed, held.created_unix_s)
    request = await resolve(ask, model, facts, drawn)
    now = replace(  # what a tenant may do by now is no other request
        request,
        numerics_class=held.numerics_class,
        priority=held.priority,
        tenant_weight=held.tenant_weight,
    )
    if now != held:
        raise AlreadyExists("another request has this id", field="generation_id")


async def _to_its_end(made: asyncio.Task[T]) -> T:
    """Nothing ends a thread: whoever is cancelled meanwhile counts until it is done, else any
    number of prompts could be in the making whose callers left."""
    try:
        return await asyncio.shield(made)
    except asyncio.CancelledError:
        await asyncio.gather(made, return_exceptions=True)
        raise
