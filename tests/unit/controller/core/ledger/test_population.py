from __future__ import annotations

from services.common.exchange import Checkpoint, ResumeQuestion, Route
from services.common.generation import (
    CancelReason,
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenSpan,
)
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.outcomes import LedgerSettings, RunsAt, ServingHead
from services.controller.core.ledger.population import Standing

MODEL = ModelRef("m", "d")
HEAD = ServingHead(Route("p", "f", "i", "a:1", 1.0, MODEL, 100), takes_new=True)


def _say(ledger: Ledger, name: str, *ids: int, **more: bool) -> None:
    request = GenerationRequest(name, MODEL, (1,), Sampling(max_tokens=3))
    spans = (TokenSpan(0, 0, ids),) if ids else ()
    ledger.checkpoint(
        Checkpoint(name, 1, "i", "f", request, spans, **more), RunsAt("p", MODEL), 0.0
    )


def _standing(ledger: Ledger, *heads: ServingHead) -> dict[str, tuple[Standing, bool]]:
    lines = ledger.population(heads).open
    return {line.generation_id: (line.standing, line.unread) for line in lines}


def test_the_status_tells_what_runs_waits_is_parked_and_has_ended() -> None:
    ledger = Ledger(LedgerSettings())
    _say(ledger, "queued")
    _say(ledger, "running", 7)
    _say(ledger, "unread", 7, unread=True)
    _say(ledger, "parked", 7, unread=True, sealed=True)
    _say(ledger, "finished", 7, 8, 9)
    _say(ledger, "cancelled", 7)
    for name in ("cancelled", "unknown"):
        ledger.cancel(name, None, CancelReason.CLIENT, None, 0.0)
    assert _standing(ledger, HEAD) == {
        "queued": (Standing.QUEUED, False),
        "running": (Standing.RUNNING, False),
        "unread": (Standing.RUNNING, True),
        "parked": (Standing.PARKED, True),
    }
    population = ledger.population((HEAD,))
    assert (population.finished, population.cancelled) == (1, 2)
    assert (population.open[1].journaled_tokens, population.open[1].pipeline_id) == (1, "p")


def test_what_a_lost_head_held_is_not_said_to_run() -> None:
    ledger = Ledger(LedgerSettings())
    _say(ledger, "running", 7)
    assert _standing(ledger) == {"running": (Standing.PARKED, False)}


def test_a_reader_that_comes_back_is_seen() -> None:
    ledger = Ledger(LedgerSettings())
    _say(ledger, "parked", 7, unread=True, sealed=True)
    ledger.resume(ResumeQuestion("parked", 1, None, ()), (HEAD,), 1.0)
    assert _standing(ledger, HEAD) == {"parked": (Standing.QUEUED, False)}
