"""What the journal knows of the end of what is kept for long, once it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from services.common.errors import NotFound, ShuntError
from services.common.exchange import GenerationState, ResumeQuestion
from services.router.controller import ControllerClient

LOOK_S = 0.005
"""A head tells the journal of an end when it tells its reader."""
LOOK_MAX_S = 0.1


async def kept_end(
    controller: ControllerClient,
    generation_id: str,
    left_alone: Callable[[], ResumeQuestion | None],
    within_s: float,
) -> GenerationState:
    """How it ended by the journal; open when that has not been found within this time. What the
    head of a reader that is `left_alone` did not tell the journal, the question does."""
    state, pause_s = GenerationState.OPEN, LOOK_S
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while (state := await _state(controller, generation_id)) is GenerationState.OPEN:
                if (question := left_alone()) is not None:
                    with suppress(ShuntError):  # and is asked again
                        await controller.resume(question, within_s)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LOOK_MAX_S)
    return state


async def _state(controller: ControllerClient, generation_id: str) -> GenerationState:
    """Open where nobody can be asked. What was deleted meanwhile has ended."""
    try:
        return (await controller.generation(generation_id)).state
    except NotFound:
        return GenerationState.FINISHED
    except ShuntError:
        return GenerationState.OPEN
