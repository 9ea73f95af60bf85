"""How fast local nodes run for the speeds declared of them: shares of this machine's cores.

A speed of 1 is worth the same share of a core on every node, and so much that those that may run at
once, the fastest that are offered, fit into the cores there are. So a plan that is better by the
declared speeds is better here.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import nlargest
from itertools import chain, repeat

FOR_STEPS = 0.75
"""Of the cores. The rest is for what is no step: messages between stages, and the services."""


def cores_per_speed(counts: Mapping[float, int], most_nodes: int, cores: float) -> float:
    """Cores that a speed of 1 is worth, where at most `counts` nodes of each speed are offered and
    `most_nodes` run at once. No node is worth more than a core: it computes in one thread."""
    offered = chain.from_iterable(
        repeat(speed, min(count, most_nodes)) for speed, count in counts.items()
    )
    fastest = nlargest(most_nodes, offered)
    return min(FOR_STEPS * cores / sum(fastest), 1 / max(fastest))
