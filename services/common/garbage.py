"""Python's collector of what refers to itself in a circle, as services have it.

Nothing else goes on while it looks. It looks at what is young often, and that is little; and at
all there is whenever a quarter more has come to stay, which is just while a crowd comes. A router
of two thousand streams has half a million objects, and was held by seven such looks, the longest
for a third of a second of a core: too long where engines want that core as well.
"""

from __future__ import annotations

import gc

LOOKS_BETWEEN = 200
"""Looks at young objects before one at all of them: 1.5 million have come to stay by then. Few of
those are garbage: of a request six, which is what may lie about in between."""


def spare_what_stays() -> None:
    """To be called once by a process that has imported what it needs: that is never looked at, and
    all that lives on beside it seldom."""
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, LOOKS_BETWEEN)
