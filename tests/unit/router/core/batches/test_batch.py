"""A batch's states, its set of lines, its document and what clients see."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Batch as ClientsBatch

from services.common.documents import MAX_BODY_CHARS
from services.common.errors import DataLoss, FailedPrecondition
from services.router.core.batches.batch import (
    MAX_LINES,
    Batch,
    Fault,
    Lines,
    Piece,
    Status,
    Usage,
    batch_of,
)

NEW = Batch("batch_1", "t", "/v1/completions", "file-1", 100, 86500)


def reach(status: Status) -> Batch:
    """A batch in this state."""
    begun = NEW.validated("m", 10, 101.0)
    if status is Status.VALIDATING:
        return NEW
    if status is Status.FAILED:
        return NEW.refused([Fault("empty_file", "no lines")], 102.0)
    if status is Status.IN_PROGRESS:
        return begun
    if status is Status.EXPIRED:
        return begun.overdue().end(status, None, "file-e", 104.0, 60)
    if status in (Status.FINALIZING, Status.COMPLETED):
        put_together = begun.finalizing(103.0)
        if status is Status.FINALIZING:
            return put_together
        return put_together.end(status, "file-o", None, 104.0, 60)
    cancelling = begun.cancelling(103.0)
    if status is Status.CANCELLING:
        return cancelling
    return cancelling.end(status, None, "file-e", 104.0, 60)


CAN_BE_CANCELLED = {Status.VALIDATING, Status.IN_PROGRESS, Status.CANCELLING, Status.CANCELLED}


@pytest.mark.parametrize("status", Status)
def test_what_has_ended_or_is_put_together_is_not_cancelled(status: Status) -> None:
    batch = reach(status)
    assert batch.status is status
    if status in CAN_BE_CANCELLED:
        assert batch.cancelling(200.0).status in (Status.CANCELLING, Status.CANCELLED)
    else:
        with pytest.raises(FailedPrecondition, match=f"batch_1 is {status}"):
            batch.cancelling(200.0)


@pytest.mark.parametrize("status", Status)
def test_every_state_survives_its_document_and_is_what_openais_client_knows(
    status: Status,
) -> None:
    batch = reach(status)
    assert batch_of(batch.document()).shown() == batch.shown()
    shown = ClientsBatch.model_validate(batch.shown(), strict=True)
    assert shown.status == status
    assert set(batch.shown()) <= set(ClientsBatch.model_fields)
    if status is not Status.VALIDATING:
        assert getattr(shown, f"{status}_at") is not None


def test_no_line_has_two_results() -> None:
    piece = Piece("pieces/a", False, 3)
    batch = reach(Status.IN_PROGRESS).noted([1, 3], 1, Usage(2, 3), [piece])
    assert (batch.completed, batch.failed, len(batch.done)) == (1, 1, 2)
    for lines in ([3], [4, 4]):
        with pytest.raises(FailedPrecondition):
            batch.noted(lines, 0, Usage(), [])
    assert batch.holds([piece])
    assert not batch.holds([piece, Piece("pieces/b", False, 3)])


@given(total=st.integers(1, 300), data=st.data())
def test_a_set_of_lines_is_a_set(total: int, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, total - 1)))
    lines = Lines(total).with_these(chosen)
    again = Lines.unpacked(total, lines.packed())
    assert {line for line in range(total) if line in again} == chosen
    assert len(again) == len(chosen)


def test_the_largest_batch_fits_a_document() -> None:
    pieces = tuple(Piece(f"pieces/batch_{'0' * 24}/{n}-{n}", False, 10**7) for n in range(1600))
    pairs = {f"{n:064}": "é" * 512 for n in range(16)}
    batch = replace(
        NEW.validated("m" * 256, MAX_LINES, 1.0),
        done=Lines(MAX_LINES).with_these(n for n in range(MAX_LINES) if hash(str(n)) % 2),
        pieces=pieces,
        metadata=MappingProxyType(pairs),
    )
    assert len(batch.document().body) < MAX_BODY_CHARS
    assert batch_of(batch.document()).pieces == pieces


def test_what_is_no_batch_is_not_read_as_one() -> None:
    document = reach(Status.IN_PROGRESS).document()
    fields = json.loads(document.body)
    for damaged in ("", "{}", json.dumps({**fields, "done": ""}), json.dumps({**fields, "x": 1})):
        with pytest.raises(DataLoss):
            batch_of(replace(document, body=damaged))
