"""What goes into one message to the journal, and what its refusals mean to a reader."""

from __future__ import annotations

from collections.abc import Iterable

from services.common.exchange import Checkpoint, CheckpointRefusal, CloseReason
from services.common.message_sizes import request_bytes
from services.engine.core.head_settings import HeadSettings
from services.engine.core.held import HeldGeneration

CLOSE_REASONS = {
    CheckpointRefusal.STALE_EPOCH: CloseReason.FENCED,
    CheckpointRefusal.UNKNOWN_FORMATION: CloseReason.FENCED,
    CheckpointRefusal.DIVERGED: CloseReason.DIVERGED,
    CheckpointRefusal.ENDED: CloseReason.CANCELLED,
}


def due_checkpoints(
    generations: Iterable[HeldGeneration], settings: HeadSettings, message: int, now_s: float
) -> tuple[Checkpoint, ...]:
    """Checkpoints of those that are due, as many as a message may carry."""
    taken: list[Checkpoint] = []
    room_bytes = settings.checkpoint_bytes_at_once
    for held in generations:
        if not held.due(settings.checkpoint_interval_s, settings.checkpoint_timeout_s, now_s):
            continue
        checkpoint = held.checkpoint(message, room_bytes, now_s)
        taken.append(checkpoint)
        room_bytes -= held.token_bytes * sum(len(span.ids) for span in checkpoint.spans)
        room_bytes -= request_bytes(checkpoint.request) if checkpoint.request is not None else 0
        if len(taken) >= settings.checkpoints_at_once or room_bytes <= 0:
            break
    return tuple(taken)
