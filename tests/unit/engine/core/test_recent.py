from __future__ import annotations

from services.engine.core.recent import Recent


def test_what_is_kept_again_is_as_young_as_that() -> None:
    recent = Recent[int](10.0, 5)
    recent.keep("a", 1, 0.0)
    recent.keep("b", 2, 4.0)
    recent.keep("a", 3, 6.0)
    recent.forget(13.9)
    assert (recent.get("a"), recent.get("b")) == (3, 2)
    recent.forget(14.0)
    assert recent.get("a") == 3
    assert "b" not in recent
    recent.forget(16.0)
    assert not len(recent)


def test_the_oldest_gives_way_to_the_newest() -> None:
    recent = Recent[None](10.0, 2)
    for name in ("a", "b", "a", "c"):
        recent.keep(name, None, 0.0)
    assert "a" in recent
    assert "b" not in recent
    assert len(recent) == 2
