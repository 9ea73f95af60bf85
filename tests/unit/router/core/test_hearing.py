from __future__ import annotations

from math import inf

import pytest

from services.router.core.hearing import Hearing


def test_a_head_is_silent_since_the_last_frame_of_any_stream() -> None:
    hearing = Hearing(0.5)
    assert hearing.silent_s("a") == inf
    hearing.look(100.0)
    hearing.hears("a")
    hearing.hears("b")
    for quarter in range(1, 9):
        hearing.look(100.0 + quarter / 4)
        if quarter == 4:
            hearing.hears("b")
    assert hearing.silent_s("a") == pytest.approx(2.0)
    assert hearing.silent_s("b") == pytest.approx(1.0)
    hearing.keep(["b"])
    assert hearing.silent_s("a") == inf
    assert hearing.silent_s("b") == pytest.approx(1.0)


def test_what_a_router_did_not_watch_is_nobodys_silence() -> None:
    hearing = Hearing(0.5)
    hearing.look(0.0)
    hearing.hears("a")
    hearing.look(0.25)
    hearing.look(20.0)
    assert hearing.silent_s("a") == pytest.approx(0.75)
