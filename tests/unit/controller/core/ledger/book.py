"""A ledger with what it recorded, and the heads that it may grant to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from services.common.exchange import (
    Checkpoint,
    Grant,
    LeaveReason,
    ResumeQuestion,
    Route,
)
from services.common.generation import (
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenSpan,
)
from services.common.phases import PipelinePhase
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.outcomes import LedgerSettings, Outcome, RunsAt, ServingHead
from services.controller.core.ledger.records import (
    Record,
)

MODEL = ModelRef("m", "d")
REQUEST = GenerationRequest("g", MODEL, (1, 2), Sampling(max_tokens=50, eos_token_ids=(2,)))


def head_of(
    name: str,
    *,
    hands_over: bool = False,
    speed: float = 1.0,
    model: ModelRef = MODEL,
    numerics: str = "",
    positions: int = 100,
    stalled: bool = False,
    phase: PipelinePhase = PipelinePhase.BOTH,
    onward: Mapping[str, float] = MappingProxyType({}),
) -> ServingHead:
    route = Route(f"p-{name}", f"f-{name}", f"i-{name}", f"{name}:1", speed, model, positions)
    return ServingHead(
        route,
        not hands_over and not stalled,
        numerics,
        hands_over,
        stalled,
        phase=phase,
        onward=onward,
    )


A, B = head_of("a"), head_of("b")


class Book:
    """A ledger and everything it would have stored."""

    def __init__(self, **settings: float) -> None:
        self.settings = LedgerSettings(**settings)  # type: ignore[arg-type]
        self.ledger = Ledger(self.settings)
        self.records: list[Record] = []

    def keep(self, outcome: Outcome | None) -> object:
        assert outcome is not None
        self.records += outcome.records
        return outcome.reply

    def checkpoint(self, *ids: int, start: int = 0, now_s: float = 0.0, **changes: object):
        spans = (TokenSpan(0, start, ids),) if ids else ()
        whole = Checkpoint("g", 1, "i-a", "f-a", REQUEST, spans)
        changed = replace(whole, **changes)  # type: ignore[arg-type]
        return self.keep(self.ledger.checkpoint(changed, RunsAt("p-a", MODEL), now_s))

    def resume(
        self,
        *ids: int,
        epoch: int = 1,
        left: str = "",
        heads=(A, B),
        now_s: float = 0.0,
        reason: LeaveReason = LeaveReason.REFUSED,
    ):
        spans = (TokenSpan(0, 0, ids),) if ids else ()
        question = ResumeQuestion("g", epoch, REQUEST, spans, left, reason if left else None)
        outcome = self.ledger.resume(question, heads, now_s)
        return None if outcome is None else self.keep(outcome)

    def restart(self) -> None:
        self.ledger = Ledger.recover(self.settings, self.records, 0.0)


def ids_of(grant: Grant) -> tuple[int, ...]:
    return grant.base[0].ids if grant.base else ()
