"""Whether a prompt's beginning that another pipeline has computed is fetched from it, or computed.

It is fetched where that takes less time than computing it does, as far as both are known: bytes
over what the link gives, and rows by what they have cost of late. It is waited for no longer than
computing it would take: so a peer that is wrong, slow or dead costs a request that much at most,
and the next one nothing, for who let somebody wait in vain is not asked again for a while.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.common.exchange import PrefixHolder
from services.common.link import UNSEEN_BYTES_PER_S, Link
from services.engine.backend import BLOCK_SIZE
from services.engine.core.scheduler import Scheduler

CALLS_S = 0.05
"""What it takes beside the bytes: to ask, to copy, to answer."""
AGAIN_S = 30.0
"""A link that seemed too slow is tried again behind so long: nothing else shows what it gives."""
MISSED_S = 5.0
"""Who let somebody wait in vain is not asked again this soon; one that is dead is out of the routes
by then."""


@dataclass(frozen=True, slots=True)
class PrefixSettings:
    """Limits of what pipelines that serve fetch from each other."""

    fetch_s: float = 2.0
    """The longest that a prompt's beginning is waited for; 0: none is fetched."""
    at_once: int = 4
    """Fetches at a time; what comes beyond is computed."""
    unseen_bytes_per_s: float = UNSEEN_BYTES_PER_S
    """What fetches bring, while none has shown it."""


@dataclass(frozen=True, slots=True)
class Worth:
    """What is worth fetching."""

    blocks: int
    """From the first on."""
    limit_s: float
    """What has not come by then is computed."""


class PrefixFetching:
    """Of one formation."""

    def __init__(self, settings: PrefixSettings | None = None, block_bytes: int = 0) -> None:
        """`block_bytes` is what a block of all layers has; 0: blocks go nowhere."""
        self.settings = settings or PrefixSettings()
        self._block_bytes = block_bytes
        self._link = Link(self.settings.unseen_bytes_per_s, AGAIN_S)
        self._missed: dict[str, float] = {}
        """Until when formations are not asked."""

    def worth(
        self, holder: PrefixHolder, blocks: int, scheduler: Scheduler, now_s: float
    ) -> Worth | None:
        """How many of these, which the holder has and the scheduler's caches lack, are worth
        fetching from it; None: none."""
        cost, limit_s = scheduler.step_cost, self.settings.fetch_s
        if not (self._block_bytes and cost.known) or self._is_shunned(holder.formation_id, now_s):
            return None
        block_s = self._block_bytes / self._link.bytes_per_s(now_s)
        fit = min(blocks, int(max(0.0, limit_s - CALLS_S) / block_s))
        rows = fit * BLOCK_SIZE
        steps = -(-rows // scheduler.settings.token_budget)
        computed_s = rows * cost.row + steps * max(0.0, cost.of(0))
        if CALLS_S + fit * block_s >= computed_s:
            return None
        return Worth(fit, min(limit_s, computed_s))

    def came(self, holder: PrefixHolder, size_bytes: int, took_s: float, now_s: float) -> None:
        """So many bytes came of a fetch in that time; 0: nothing did."""
        if size_bytes and took_s >= 2 * CALLS_S:  # from less nothing follows: it was calls
            self._link.carried(size_bytes, took_s - CALLS_S, now_s)
        if not size_bytes and took_s >= CALLS_S:
            self._missed[holder.formation_id] = now_s + MISSED_S

    def _is_shunned(self, formation_id: str, now_s: float) -> bool:
        self._missed = {name: until_s for name, until_s in self._missed.items() if until_s > now_s}
        return formation_id in self._missed
