"""Schema 2 of the journal's file, for reading what earlier programs left.

Its kinds were names of Python classes and its bodies messages of an API, so both are written down
here as they were. Nothing else knows of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from types import MappingProxyType

from shuntserve.journal.v2 import journal_pb2 as pb

from services.common.errors import DataLoss
from services.common.generation import (
    CancelReason,
    FinishReason,
    GenerationKind,
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenLogprob,
    TokenSpan,
)
from services.controller.core.ledger.records import Ended, Granted, HeadBound, Sealed
from services.controller.journal.bodies import stored, stored_together, value_of
from services.controller.journal.rows import Row, checked, with_checksum

VERSION = 2
_BATCH = 64
"""Rows taken before their room is given to new ones: few, for a row may hold a long prompt."""
_TAKE = "SELECT * FROM schema2 ORDER BY number LIMIT ?"
_DROP = "DELETE FROM schema2 WHERE number <= ?"
_APPENDED = ("Appended", "IdsAppended")
_BOUND = ("Bound", "HeadBound")
"""The class got another name while schema 2 was written."""
_FINISH_REASONS = {FinishReason.STOP: 1, FinishReason.LENGTH: 2, FinishReason.CANCELLED: 3}
_GENERATION_KINDS = {GenerationKind.CHAT: 1, GenerationKind.COMPLETION: 2}
_CANCEL_REASONS = {"client": CancelReason.CLIENT, "stop": CancelReason.STOP}


def carry_over(connection: sqlite3.Connection, create_records: Sequence[str], insert: str) -> int:
    """Replaces the records by rows of the present schema, in the caller's transaction, each in the
    room of the one it replaces; returns how many. The other tables are the same.

    Raises DataLoss, DecodeError or ValueError for a row that is damaged.
    """
    connection.execute("DROP INDEX records_by_generation")
    connection.execute("ALTER TABLE records RENAME TO schema2")
    for statement in create_records:
        connection.execute(statement)
    count = 0
    while rows := connection.execute(_TAKE, (_BATCH,)).fetchall():
        connection.executemany(insert, map(_row, rows))
        connection.execute(_DROP, (rows[-1][0],))
        count += len(rows)
    connection.execute("DROP TABLE schema2")
    return count


def _row(row: Row) -> Row:
    number, written_s, generation_id, *said = checked("records", row)
    return with_checksum(number, written_s, generation_id, *_stored(generation_id, *said))


def _stored(
    name: str,
    kind: str,
    epoch: int,
    incarnation: str,
    formation_id: str,
    pipeline_id: str,
    choice: int | None,
    reason: str,
    length: int | None,
    body: bytes | None,
) -> tuple[int, bytes]:
    if kind == "Sealed":
        return stored(Sealed(name, epoch))
    if kind == "Ended":
        if reason not in _CANCEL_REASONS:
            raise DataLoss(f"{reason} is no cancel reason")
        return stored(Ended(name, choice, _CANCEL_REASONS[reason], length))
    said = pb.Body.FromString(body or b"")
    spans = tuple(map(_span, said.runs))
    if kind in _APPENDED:
        return stored_together(spans)
    head = (incarnation, formation_id, pipeline_id)
    if kind in _BOUND:
        return stored(HeadBound(name, *head, _request(said.request)))
    if kind == "Granted":
        return stored(Granted(name, epoch, *head, _request(said.request), spans))
    raise DataLoss(f"{kind!r} is no kind of record")


def _span(run: pb.Run) -> TokenSpan:
    return TokenSpan(
        run.choice,
        run.start,
        tuple(run.ids),
        tuple(
            TokenLogprob(entry.logprob, tuple((top.token_id, top.logprob) for top in entry.top))
            for entry in run.logprobs
        ),
        value_of(_FINISH_REASONS, run.finish_reason, "finish reason")
        if run.finish_reason
        else None,
    )


def _request(said: pb.Request) -> GenerationRequest:
    sampling = said.sampling
    return GenerationRequest(
        generation_id=said.generation_id,
        model=ModelRef(said.model.model_id, said.model.digest),
        prompt_ids=tuple(said.prompt_ids),
        sampling=Sampling(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            logit_bias=MappingProxyType(dict(sampling.logit_bias)),
            top_logprobs=sampling.top_logprobs if sampling.HasField("top_logprobs") else None,
            min_tokens=sampling.min_tokens,
            stop_token_ids=tuple(sampling.stop_token_ids),
            ignore_eos=sampling.ignore_eos,
            eos_token_ids=tuple(sampling.eos_token_ids),
            seed=sampling.seed,
        ),
        choices=said.choices,
        stop_strings=tuple(said.stop_strings),
        kind=value_of(_GENERATION_KINDS, said.kind, "generation kind"),
        created_unix_s=said.created_unix_s,
        include_usage=said.include_usage,
        numerics_class=said.numerics_class,
        ask_digest=said.ask_digest,
    )
