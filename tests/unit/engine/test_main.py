"""When an engine's process ends by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from services.engine import __main__ as main_module

LOOKS = 6
ORPHAN_S = 0.4
"""In so long it looks four times."""


class Link:
    """Of a controller that wants few beats, so that no answer is due, and is then away."""

    def __init__(self) -> None:
        self.looks = 0

    @property
    def silent_s(self) -> float:
        self.looks += 1
        return -60.0 if self.looks <= LOOKS else 60.0


async def test_a_node_is_no_orphan_while_no_answer_of_its_controller_is_due() -> None:
    link, engine = Link(), SimpleNamespace(head=SimpleNamespace(reader_count=0))
    await main_module._until_orphaned(cast(Any, engine), cast(Any, link), ORPHAN_S)
    assert link.looks > LOOKS
