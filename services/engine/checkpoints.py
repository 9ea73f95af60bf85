"""What goes into one message to the journal, and what its refusals mean to a reader."""

from __future__ import annotations

from collections.abc import Iterable

from services.common.exchange import Checkpoint, CheckpointRefusal, CloseReason
from services.engine.head_settings import HeadSettings
from services.engine.held import Held

CLOSE_REASONS = {
    CheckpointRefusal.STALE_EPOCH: CloseReason.FENCED,
    CheckpointRefusal.UNKNOWN_FORMATION: CloseReason.FENCED,
    CheckpointRefusal.DIVERGED: CloseReason.DIVERGED,
    CheckpointRefusal.ENDED: CloseReason.CANCELLED,
}


def due_checkpoints(
    generations: Iterable[Held], settings: HeadSettings, message: int, now_s: float
) -> tuple[Checkpoint, ...]:
    """Checkpoints of those that are due, as many as a message may carry."""
    taken: list[Checkpoint] = []
    ids = 0
    for held in generations:
        if not held.due(settings.checkpoint_interval_s, settings.checkpoint_timeout_s, now_s):
            continue
        taken.append(held.checkpoint(message, now_s))
        ids += sum(len(span.ids) for span in taken[-1].spans)
        if len(taken) >= settings.checkpoints_at_once or ids >= settings.checkpoint_ids_at_once:
            break
    return tuple(taken)
