"""How many rows a step may have, so that its batch fits one message to the next stage."""

from __future__ import annotations

from services.common.errors import FailedPrecondition
from services.common.message_sizes import ID_BYTES
from services.engine.backend import StageFacts
from services.engine.core.scheduler import MAX_OPENED_IDS, SchedulerSettings

_ELEMENT_BYTES = {"bf16": 2, "fp32": 4}
_SEQUENCE_BYTES = 16 << 10
"""Of a sequence in a step beside its ids, rows and blocks: its biases, its trace context."""


def most_rows(
    facts: StageFacts, kv_blocks: int, positions: int, settings: SchedulerSettings, limit_bytes: int
) -> int:
    """Rows of hidden states that fit beside the ids of sequences that enter and all block tables;
    `positions` is the most of one sequence.

    Raises FailedPrecondition when that is too little for a row of each sequence and one more.
    """
    ids = MAX_OPENED_IDS + positions + kv_blocks
    beside = ID_BYTES * ids + _SEQUENCE_BYTES * settings.max_sequences
    rows = (limit_bytes - beside) // (facts.hidden_size * _ELEMENT_BYTES[facts.hidden_dtype])
    if rows <= settings.max_sequences:
        raise FailedPrecondition(
            f"max_message_bytes {limit_bytes} holds no step of {settings.max_sequences} sequences "
            f"and {facts.hidden_size} values a row",
            field="max_message_bytes",
        )
    return rows
