"""How much more time a machine needs than one on which the tests' times are long enough."""

from __future__ import annotations

import asyncio
import sys
import time

IMPORTS_S = 2.0
"""An engine is imported within this where they are."""
LONGEST = 2.0
ENGINE = (sys.executable, "-c", "import services.engine.__main__")


async def slowness() -> float:
    """So many times more, just now: 1 at least."""
    began_s = time.monotonic()
    engine = await asyncio.create_subprocess_exec(*ENGINE)
    assert await engine.wait() == 0
    return min(max(1.0, (time.monotonic() - began_s) / IMPORTS_S), LONGEST)
