from __future__ import annotations

import asyncio
import random

import pytest

from bench import chaos


class Refusing:
    """A killer who finds nobody alone until he has tried so often."""

    def __init__(self, tries: int) -> None:
        self.tries = tries
        self.kills: list[str] = []

    async def kill(self, kind: str, count: int = 1) -> bool:
        self.kills.append(kind)
        return kind == "prelude" or self.kills.count("solo") == self.tries


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleep(_: float) -> None:
        pass

    monkeypatch.setattr(asyncio, "sleep", sleep)


async def test_who_is_to_be_killed_alone_is_tried_again() -> None:
    killer = Refusing(3)
    await chaos._solo(killer, random.Random(1))  # type: ignore[arg-type]
    assert killer.kills == ["prelude", "solo"] * 3


async def test_whoever_is_never_alone_ends_the_run() -> None:
    killer = Refusing(0)
    with pytest.raises(TimeoutError, match="both pipelines"):
        await chaos._solo(killer, random.Random(1))  # type: ignore[arg-type]
    assert killer.kills == ["prelude", "solo"] * chaos.SOLO_TRIES
