"""Files of schema 2, as the programs of that time wrote them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from shuntserve.journal.v2 import journal_pb2 as pb

from services.common.generation import FinishReason, GenerationKind, GenerationRequest, TokenSpan
from services.controller.core.ledger.records import (
    Ended,
    Granted,
    HeadBound,
    IdsAppended,
    Record,
    Sealed,
)
from services.controller.journal.rows import with_checksum

WRITTEN_S = 1764200000.25
SCRIPT = (Path(__file__).parent / "schema2.sql").read_text()
"""The whole of a file that the last program of schema 2 left."""
EMPTY = "\n".join(line for line in SCRIPT.splitlines() if not line.startswith("INSERT"))
_INSERT = f"INSERT INTO records VALUES ({', '.join('?' * 13)})"
_FINISH_REASONS = {FinishReason.STOP: 1, FinishReason.LENGTH: 2, FinishReason.CANCELLED: 3}


def make(path: Path, records: Iterable[Record] = (), script: str = EMPTY) -> None:
    """Runs the script in a new file, and writes these records behind it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(script)
        insert(
            connection,
            (
                (number, WRITTEN_S, record.generation_id, *_columns(record))
                for number, record in enumerate(records, 1000)
            ),
        )


def insert(connection: sqlite3.Connection, rows: Iterable[Sequence[object]]) -> None:
    """Rows that lack their checksum yet."""
    connection.executemany(_INSERT, (with_checksum(*row) for row in rows))
    connection.commit()


def _columns(record: Record) -> Sequence[object]:
    nothing = (None,) * 7
    match record:
        case HeadBound(_, incarnation, formation, pipeline, request):
            return ("Bound", 1, incarnation, formation, pipeline, *nothing[:3], _body(request, ()))
        case Granted(_, epoch, incarnation, formation, pipeline, request, spans):
            head = (epoch, incarnation, formation, pipeline)
            return ("Granted", *head, *nothing[:3], _body(request, spans))
        case IdsAppended(_, span):
            return ("Appended", *nothing, _body(None, (span,)))
        case Sealed(_, epoch):
            return ("Sealed", epoch, *nothing)
        case Ended(_, choice, reason, length):
            return ("Ended", *nothing[:4], choice, reason.value, length, None)
        case _:
            raise TypeError(f"{record} has no row")


def _body(request: GenerationRequest | None, spans: Iterable[TokenSpan]) -> bytes:
    return pb.Body(
        request=None if request is None else _request(request), runs=map(_run, spans)
    ).SerializeToString()


def _request(request: GenerationRequest) -> pb.Request:
    sampling = request.sampling
    return pb.Request(
        generation_id=request.generation_id,
        model=pb.Model(model_id=request.model.model_id, digest=request.model.digest),
        prompt_ids=request.prompt_ids,
        choices=request.choices,
        sampling=pb.Sampling(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            logit_bias=sampling.logit_bias,
            top_logprobs=sampling.top_logprobs,
            max_tokens=sampling.max_tokens,
            min_tokens=sampling.min_tokens,
            stop_token_ids=sampling.stop_token_ids,
            ignore_eos=sampling.ignore_eos,
            eos_token_ids=sampling.eos_token_ids,
            seed=sampling.seed,
        ),
        stop_strings=request.stop_strings,
        kind={GenerationKind.CHAT: 1, GenerationKind.COMPLETION: 2}[request.kind],
        created_unix_s=request.created_unix_s,
        include_usage=request.include_usage,
        numerics_class=request.numerics_class,
        ask_digest=request.ask_digest,
    )


def _run(span: TokenSpan) -> pb.Run:
    return pb.Run(
        choice=span.choice,
        start=span.start,
        ids=span.ids,
        logprobs=[
            pb.Logprob(
                logprob=entry.logprob,
                top=[pb.Alternative(token_id=top, logprob=value) for top, value in entry.top],
            )
            for entry in span.logprobs
        ],
        finish_reason=_FINISH_REASONS[span.finish_reason] if span.finish_reason else 0,
    )
