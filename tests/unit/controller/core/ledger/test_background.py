from __future__ import annotations

from services.common.generation import GenerationRequest, ModelRef, ResponseTerms, Sampling
from services.controller.core.ledger.background import Background
from services.controller.core.ledger.entry import JournalEntry

TERMS = ResponseTerms(store=True, background=True, details="{}")
REQUEST = GenerationRequest("g", ModelRef("m", "d"), (1,), Sampling(max_tokens=2), response=TERMS)


class Scene:
    """One generation at formation f, which serves."""

    def __init__(self) -> None:
        self.entry = JournalEntry(REQUEST, 1, 0.0)
        self.entry.formation_id = "f"
        self.background = Background(claim_s=5.0)
        self.background.began("g", 0.0)

    def claimed(self, now_s: float, *serving: str, at_most: int = 9) -> bool:
        names = self.background.claim({"g": self.entry}, serving, now_s, at_most)
        return names == ["g"]


def test_what_is_read_is_nobody_elses() -> None:
    assert not Scene().claimed(1000.0, "f")


def test_what_lost_its_reader_is_offered_at_once_and_then_not_for_a_while() -> None:
    scene = Scene()
    assert not scene.claimed(4.9, "f")
    scene.entry.unread = True
    assert not scene.claimed(4.9, "f"), "whoever asked for it is about to read it"
    assert scene.claimed(5.0, "f")
    assert not scene.claimed(9.9, "f")
    assert scene.claimed(10.0, "f")


def test_what_lost_its_head_is_offered_when_its_reader_does_not_go_on() -> None:
    scene = Scene()
    scene.entry.hear(20.0)
    scene.entry.touched_s = 24.0  # somebody looks at it
    assert not scene.claimed(24.9)
    assert scene.claimed(25.0)


def test_what_was_handed_over_is_offered_when_its_reader_does_not_go_on() -> None:
    scene = Scene()
    scene.entry.hear(20.0)
    scene.entry.sealed = True
    assert not scene.claimed(24.9, "f")
    assert scene.claimed(25.0, "f")


def test_no_more_are_offered_than_are_wanted_the_oldest_first() -> None:
    scene = Scene()
    scene.entry.unread = True
    entries = dict.fromkeys(("g", "h", "i"), scene.entry)
    for name in ("h", "i"):
        scene.background.began(name, 0.0)
    assert scene.background.claim(entries, (), 5.0, 2) == ["g", "h"]
    assert scene.background.claim(entries, (), 5.0, 2) == ["i"]


def test_what_has_ended_is_offered_to_nobody() -> None:
    scene = Scene()
    scene.entry.unread = True
    scene.background.remove("g")
    assert not scene.claimed(5.0)
    assert len(scene.background) == 0
