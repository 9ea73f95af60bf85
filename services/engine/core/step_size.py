"""How many rows a step may have, so that its batch fits one message to the next stage."""

from __future__ import annotations

from services.common.errors import FailedPrecondition
from services.common.message_sizes import ID_BYTES
from services.engine.backend import StageFacts
from services.engine.core.blocks import MAX_SHARES, blocks_for
from services.engine.core.scheduler import MAX_OPENED_IDS, SchedulerSettings

_ELEMENT_BYTES = {"bf16": 2, "fp32": 4}
_SEQUENCE_BYTES = 24 << 10
"""Of a sequence in a step beside its ids, rows and blocks: its biases and allowed ids, its trace
context."""


def most_rows(
    facts: StageFacts, kv_blocks: int, positions: int, settings: SchedulerSettings, limit_bytes: int
) -> int:
    """Rows of hidden states that fit beside the ids of sequences that enter and all block tables;
    `positions` is the most of one sequence.

    Raises FailedPrecondition when that is too little for a row of each sequence and one more.
    """
    shared = settings.max_sequences * blocks_for(positions) if settings.share_prefixes else 0
    ids = MAX_OPENED_IDS + positions + kv_blocks + min(shared, MAX_SHARES)
    beside = ID_BYTES * ids + _SEQUENCE_BYTES * settings.max_sequences
    rows = (limit_bytes - beside) // (facts.row_width * _ELEMENT_BYTES[facts.hidden_dtype])
    if rows <= settings.max_sequences:
        raise FailedPrecondition(
            f"max_message_bytes {limit_bytes} holds no step of {settings.max_sequences} sequences "
            f"and {facts.row_width} values a row",
            field="max_message_bytes",
        )
    return rows
