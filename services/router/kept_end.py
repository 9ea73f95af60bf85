"""What the journal knows of the end of what is kept for long, once it does."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from services.common.errors import NotFound, ShuntError
from services.common.exchange import GenerationState
from services.router.controller import ControllerClient

LOOK_S = 0.005
"""A head tells the journal of an end when it tells its reader."""
LOOK_MAX_S = 0.1


async def kept_end(
    controller: ControllerClient, generation_id: str, within_s: float
) -> GenerationState:
    """How it ended by the journal; open when that has not been found within this time."""
    state, pause_s = GenerationState.OPEN, LOOK_S
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while (state := await _state(controller, generation_id)) is GenerationState.OPEN:
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
