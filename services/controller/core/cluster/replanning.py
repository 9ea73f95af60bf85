"""When the next plan is asked for, and of which offers.

What takes capacity away is answered at once, with the least change. What might make a better plan
(an offer, a price, a workload that left the plan's envelope) is looked at when it has lasted, and
not soon after the last change: a market may flap, the mesh does not. Whether a plan is worth its
move is placement's judgement; this decides when the question is worth asking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf

from services.controller.core.cluster.backoff import Backoff
from services.controller.core.cluster.market import Offer


class Cause(StrEnum):
    """Why a plan is asked for."""

    LOST = "node_lost"
    NOTICED = "node_noticed"
    REFUSED = "launch_refused"
    CAME = "node_came"
    OFFERS = "offers_changed"
    WORKLOAD = "workload_changed"
    OPERATOR = "operator"
    REPAIRED = "repaired"
    """The last plan only repaired: the whole is looked at when there is time."""


URGENT = frozenset({Cause.LOST, Cause.NOTICED, Cause.REFUSED, Cause.OPERATOR})


@dataclass(frozen=True, slots=True)
class ReplanSettings:
    """Timings in seconds."""

    settle_s: float = 1.0
    """What happens together is one change: improvements wait so long for more of it."""
    cool_down_s: float = 60.0
    """No improvement is asked for so soon behind a change of plan."""
    steady_s: float = 30.0
    """An offer counts for an improvement once it has stood so long, and no dearer."""
    envelope: float = 0.25
    """A workload within this share of the planned one is the same."""
    ask_again_s: float = 1.0
    """Pause behind a planning failure; it doubles from failure to failure."""
    ask_again_max_s: float = 60.0
    candidates_an_offer: int = 16
    """Nodes of one offer that a plan may name beside those that run."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What requests of a deployment look like: means, and how many arrive a second."""

    arrival_rate_rps: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0

    def within(self, planned: Workload, share: float) -> bool:
        """Each of the means is within this share of the planned one."""
        pairs = (
            (self.arrival_rate_rps, planned.arrival_rate_rps),
            (self.input_tokens, planned.input_tokens),
            (self.output_tokens, planned.output_tokens),
        )
        return all(abs(now - then) <= share * max(now, then) for now, then in pairs)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that a plan may name though it does not run: the n-th of an offer."""

    name: str
    offer: Offer


@dataclass(frozen=True, slots=True)
class Ask:
    """A question to placement."""

    causes: tuple[Cause, ...]
    improve: bool
    """Plan the whole anew too, not only what was lost or is new."""
    candidates: tuple[Candidate, ...]
    workload: Workload


class Replanner:
    """Events in, questions out; one question at a time."""

    def __init__(self, settings: ReplanSettings) -> None:
        self._settings = settings
        self._causes: dict[Cause, float] = {}
        """When each first happened since the last question."""
        self._offers: dict[str, Offer] = {}
        self._stands_since_s: dict[str, float] = {}
        """Since when each is there, as it is or better."""
        self._fresh: set[str] = set()
        """Offers that are new or better than when the whole was planned last."""
        self._shut_until_s: dict[str, float] = {}
        self._changed_s = -inf
        self._asking: Ask | None = None
        self._failures = Backoff()
        self.planned = Workload()
        """What the running plan was made for."""
        self._workload = Workload()

    # What happens

    def happened(self, cause: Cause, now_s: float) -> None:
        self._causes.setdefault(cause, now_s)

    def offered(self, offers: Sequence[Offer], now_s: float) -> None:
        """These are all sound offers now."""
        offers_now = {offer.offer_id: offer for offer in offers}
        for offer_id, offer in offers_now.items():
            before = self._offers.get(offer_id)
            if before == offer:
                continue
            if before is None or not before.count or _is_worse(offer, before):
                self._stands_since_s[offer_id] = now_s
            if offer.count:
                self._fresh.add(offer_id)
        self._offers = offers_now
        self._stands_since_s = {k: v for k, v in self._stands_since_s.items() if k in offers_now}
        self._fresh &= offers_now.keys()

    def refused(self, offer_id: str, until_s: float, now_s: float) -> None:
        """A launch from the offer came to nothing: no plan names it before `until_s`."""
        if offer_id in self._offers:
            self._shut_until_s[offer_id] = max(until_s, self._shut_until_s.get(offer_id, -inf))
            self._stands_since_s[offer_id] = until_s
            self._fresh.add(offer_id)
        self.happened(Cause.REFUSED, now_s)

    def measured(self, workload: Workload, now_s: float) -> None:
        """The workload as it is by now, smoothed."""
        self._workload = workload
        if not workload.within(self.planned, self._settings.envelope):
            self.happened(Cause.WORKLOAD, now_s)
        else:
            self._causes.pop(Cause.WORKLOAD, None)

    # Questions

    def due(self, running: dict[str, int], now_s: float) -> Ask | None:
        """The question to ask now, if any; `running` counts nodes by offer. Answer with `taken`,
        `kept` or `failed`."""
        if self._asking is not None or now_s < self._due_s():
            return None
        improve = Cause.OPERATOR in self._causes or URGENT.isdisjoint(self._causes)
        causes = [c for c in self._causes if improve or c in URGENT]
        for cause in causes:
            del self._causes[cause]
        if improve:
            steady = {k for k in self._fresh if now_s >= self._steady_at_s(k)}
            self._fresh -= steady
            causes += [Cause.OFFERS] if steady else []
        candidates = self._candidates(running, improve, now_s)
        self._asking = Ask(tuple(causes), improve, candidates, self._workload)
        return self._asking

    def taken(self, now_s: float) -> None:
        """The answer is the plan from now on."""
        ask, self._asking = self._asking, None
        self._failures.succeed()
        self._changed_s = now_s
        if ask is not None:
            self.planned = ask.workload
            if not ask.improve:
                self.happened(Cause.REPAIRED, now_s)

    def kept(self, now_s: float) -> None:
        """The answer was to stay."""
        ask, self._asking = self._asking, None
        self._failures.succeed()
        if ask is not None and ask.improve:
            self.planned = ask.workload
            self._changed_s = max(self._changed_s, now_s - self._settings.cool_down_s / 2)

    def failed(self, reason: str, permanent: bool, now_s: float) -> None:
        """There was no answer: the last plan stands, and the same is asked again after a pause; a
        permanent failure only once something else has happened."""
        ask, self._asking = self._asking, None
        settings = self._settings
        self._failures.fail(
            now_s,
            reason,
            first_s=settings.ask_again_s,
            longest_s=settings.ask_again_max_s,
            permanent=permanent,
        )
        if ask is not None and not permanent:
            for cause in ask.causes:
                if cause is Cause.OFFERS:
                    self._fresh |= self._offers.keys()
                else:
                    self._causes.setdefault(cause, now_s)

    @property
    def asking(self) -> bool:
        """A question is out."""
        return self._asking is not None

    def wakes_at_s(self) -> float:
        """When `due` may have something; infinite when nothing has happened."""
        return inf if self._asking is not None else self._due_s()

    def _due_s(self) -> float:
        urgent_s = min((at_s for c, at_s in self._causes.items() if c in URGENT), default=inf)
        return max(min(urgent_s, self._leisure_s()), self._failures.retry_at_s)

    def _leisure_s(self) -> float:
        """When there is something to improve, and time to."""
        settled = [
            at_s + self._settings.settle_s for c, at_s in self._causes.items() if c not in URGENT
        ]
        steady = [self._steady_at_s(offer_id) for offer_id in self._fresh]
        return max(
            min([*settled, *steady], default=inf), self._changed_s + self._settings.cool_down_s
        )

    def _steady_at_s(self, offer_id: str) -> float:
        return self._stands_since_s[offer_id] + self._settings.steady_s

    def _candidates(
        self, running: dict[str, int], improve: bool, now_s: float
    ) -> tuple[Candidate, ...]:
        """Open nodes of the offers that may be named; what is urgent takes any that is not shut."""
        settings = self._settings
        found = []
        for offer_id, offer in self._offers.items():
            shut = now_s < self._shut_until_s.get(offer_id, -inf)
            if shut or (improve and now_s < self._steady_at_s(offer_id)):
                continue
            open_count = max(0, offer.count - running.get(offer_id, 0))
            found += [
                Candidate(f"{offer_id}#{index + 1}", offer)
                for index in range(min(open_count, settings.candidates_an_offer))
            ]
        return tuple(found)


def _is_worse(offer: Offer, before: Offer) -> bool:
    """Dearer, or other in kind."""
    old, new = before.price_per_hour or 0.0, offer.price_per_hour or 0.0
    return new > old or offer.shape != before.shape or offer.spot != before.spot
