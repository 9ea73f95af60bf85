"""When the next plan is asked for, and of which offers.

What takes capacity away is answered at once, with the least change. What might make a better plan
(an offer, a price, a workload that left the plan's envelope) is looked at when it has lasted, and
not soon after the last change: a market may flap, the mesh does not. Whether a plan is worth its
move is placement's judgement; this decides when the question is worth asking.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf

from services.controller.core.cluster.backoff import Backoff
from services.controller.core.cluster.market import Offer
from services.controller.core.cluster.workload import Workload


class Cause(StrEnum):
    """Why a plan is asked for."""

    LOST = "node_lost"
    NOTICED = "node_noticed"
    REFUSED = "launch_refused"
    CAME = "node_came"
    OFFERS = "offers_changed"
    WORKLOAD = "workload_changed"
    OPERATOR = "operator"
    ASKED = "asked_for"
    """A model that slept is asked for."""
    BUDGET = "over_budget"
    """What runs costs more than it may: prices have risen."""
    REPAIRED = "repaired"
    """The last plan only repaired: the whole is looked at when there is time."""
    FIRST = "first_plan"
    """There was none."""
    DEPLOYMENTS = "deployments"
    """Models were deployed or undeployed."""
    QUIET = "quiet"
    """Nobody asks for the model: it gets no pipeline."""
    DIVIDED = "divided_anew"
    """A model could not be served within what the others left."""


URGENT = frozenset(
    {Cause.LOST, Cause.NOTICED, Cause.REFUSED, Cause.OPERATOR, Cause.ASKED, Cause.BUDGET}
)
_ANY_OFFER = frozenset({Cause.OPERATOR, Cause.ASKED})
"""The whole is planned, of whatever is open now."""


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
    measured_s: float = 30.0
    """A workload counts once it was measured for so long."""
    counts_arrivals: bool = True
    """The objective asks for what arrives to be carried; otherwise a workload is compared with the
    planned one only where a plan was made for one."""
    counts_lengths: bool = False
    """What requests look like counts from the first one on, too: a plan that was made for none in
    particular is looked at once they are known."""
    return_s: float = 10.0
    """Where nodes come by themselves, one that is gone may come back within this."""
    ask_again_s: float = 1.0
    """Pause behind a planning failure; it doubles from failure to failure."""
    ask_again_max_s: float = 60.0
    anew: bool = False
    """The whole is planned whatever happened, and a node that goes or comes is reason enough."""
    candidates_an_offer: int = 16
    """Nodes of one offer that a plan may name beside those that run."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that a plan may name though it does not run: the n-th of an offer."""

    name: str
    offer: Offer


@dataclass(frozen=True, slots=True)
class Lack:
    """A seat of the plan that nobody is to be had for."""

    pipeline_id: str
    stage: int
    node_id: str = ""
    """Who sits there and will be taken away; empty when it is vacant."""
    refused: bool = False
    """A launch came to nothing; otherwise nodes come by themselves."""

    @property
    def cause(self) -> Cause:
        if self.node_id:
            return Cause.NOTICED
        return Cause.REFUSED if self.refused else Cause.LOST


@dataclass(frozen=True, slots=True)
class Ask:
    """A question to placement."""

    causes: tuple[Cause, ...]
    improve: bool
    """Plan the whole anew too, not only what was lost or is new."""
    candidates: tuple[Candidate, ...]
    workload: Workload | None
    """None while it is not known."""


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
        self._lacks: dict[Lack, float] = {}
        """Seats that the plan cannot fill, and when that is to be asked about; infinite behind the
        question."""
        self.changed_s = -inf
        """When the plan last became another one, or nearly did."""
        self._over_budget = False
        self._asking: Ask | None = None
        self._failures = Backoff()
        self._there: frozenset[str] | None = None
        """Nodes that may have a place; None before any were told of."""
        self.planned: Workload | None = None
        """What the running plan was made for; None where it was made for none in particular."""
        self._workload: Workload | None = None

    # What happens

    def happened(self, cause: Cause, now_s: float) -> None:
        self._causes.setdefault(cause, now_s)
        if cause in _ANY_OFFER:
            self._failures.try_now()  # somebody waits

    def there(self, nodes: Collection[str], now_s: float) -> None:
        """These are all nodes that may have a place now."""
        before, self._there = self._there, frozenset(nodes)
        if self._settings.anew and before is not None and before != self._there:
            self.happened(Cause.LOST if before - self._there else Cause.CAME, now_s)

    def forget(self, cause: Cause) -> None:
        """It is not asked about any more."""
        self._causes.pop(cause, None)

    def exceeded(self, over: bool, now_s: float) -> None:
        """Whether what runs costs more than it may: told each time, asked about once."""
        if over and not self._over_budget:
            self.happened(Cause.BUDGET, now_s)
        self._over_budget = over

    def lacking(self, lacks: Collection[Lack], now_s: float) -> None:
        """These are all seats that the plan cannot fill now."""
        for lack in lacks:
            wait_s = 0.0 if lack.refused else self._settings.return_s
            self._lacks.setdefault(lack, now_s + wait_s)
        self._lacks = {lack: at_s for lack, at_s in self._lacks.items() if lack in lacks}

    def start_with(self, offers: Sequence[Offer]) -> None:
        """What is offered as the first plan is made is no news."""
        self._offers = {offer.offer_id: offer for offer in offers}
        self._stands_since_s = dict.fromkeys(self._offers, -inf)

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

    def refused(self, offer_id: str, until_s: float) -> None:
        """A launch from the offer came to nothing: no plan names it before `until_s`. Whether a
        seat stays vacant for it, `lacking` says."""
        if offer_id in self._offers:
            self._shut_until_s[offer_id] = max(until_s, self._shut_until_s.get(offer_id, -inf))
            self._stands_since_s[offer_id] = until_s
            self._fresh.add(offer_id)

    def opened(self, offer_id: str, now_s: float) -> None:
        """There is more of an offer that said no: it may be named again."""
        if self._shut_until_s.pop(offer_id, -inf) > now_s and offer_id in self._offers:
            self._stands_since_s[offer_id] = now_s

    def measured(self, workload: Workload | None, now_s: float) -> None:
        """The workload as it is by now, smoothed; None while it is not known."""
        if workload is None or workload.window_s < self._settings.measured_s:
            self._causes.pop(Cause.WORKLOAD, None)
            return
        self._workload = workload
        if self._is_planned_for(workload):
            self._causes.pop(Cause.WORKLOAD, None)
        else:
            self.happened(Cause.WORKLOAD, now_s)

    def _is_planned_for(self, workload: Workload) -> bool:
        if self.planned is None:
            return not (self._settings.counts_arrivals or self._settings.counts_lengths)
        settings = self._settings
        return workload.within(self.planned, settings.envelope, arrivals=settings.counts_arrivals)

    # Questions

    def due(self, running: dict[str, int], now_s: float, *, busy: bool = False) -> Ask | None:
        """The question to ask now, if any; `running` counts nodes by offer. Answer with `taken`,
        `kept` or `failed`. While a change is carried out (`busy`), only what is urgent is asked."""
        if self._asking is not None or now_s < self._due_s(busy):
            return None
        urgent = [cause for cause in self._causes if cause in URGENT]
        missed = {lack: lack.cause for lack, at_s in self._lacks.items() if at_s <= now_s}
        at_leisure = not (urgent or missed)
        improve = at_leisure or self._settings.anew or not _ANY_OFFER.isdisjoint(urgent)
        causes = [c for c in self._causes if (improve and not busy) or c in URGENT]
        for cause in causes:
            del self._causes[cause]
        self._lacks |= dict.fromkeys(missed, inf)
        causes += [cause for cause in dict.fromkeys(missed.values()) if cause not in causes]
        if improve:
            steady = {k for k in self._fresh if now_s >= self._steady_at_s(k)}
            self._fresh -= steady
            causes += [Cause.OFFERS] if steady else []
        ask = Ask(tuple(causes), improve, (), self._workload)
        self._asking = self.renewed(ask, running, now_s)
        return self._asking

    def renewed(self, ask: Ask, running: dict[str, int], now_s: float) -> Ask:
        """The question with what may be named by now."""
        only_steady = ask.improve and URGENT.isdisjoint(ask.causes)
        return replace(ask, candidates=self._candidates(running, only_steady, now_s))

    @property
    def overtaken(self) -> bool:
        """A question is out, and something more urgent has happened."""
        return (
            self._asking is not None
            and self._asking.improve
            and not URGENT.isdisjoint(self._causes)
        )

    def withdrawn(self, now_s: float) -> None:
        """The question is taken back, or its answer came too late: it is asked anew."""
        ask, self._asking = self._asking, None
        if ask is not None:
            self._ask_again(ask, now_s)

    def _ask_again(self, ask: Ask, now_s: float) -> None:
        for cause in ask.causes:
            if cause is Cause.OFFERS:
                self._fresh |= self._offers.keys()
            else:
                self._causes.setdefault(cause, now_s)

    def taken(self, now_s: float) -> None:
        """The answer is the plan from now on."""
        ask, self._asking = self._asking, None
        self._failures.succeed()
        self.changed_s = now_s
        if ask is not None:
            self.planned = ask.workload
            if not ask.improve:
                self.happened(Cause.REPAIRED, now_s)

    def changed(self, now_s: float) -> None:
        """Somebody else has changed the plan."""
        self.changed_s = now_s

    def kept(self, now_s: float) -> None:
        """The answer was to stay."""
        ask, self._asking = self._asking, None
        self._failures.succeed()
        if ask is not None and ask.improve:
            self.planned = ask.workload
            self.changed_s = max(self.changed_s, now_s - self._settings.cool_down_s / 2)

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
            self._ask_again(ask, now_s)

    @property
    def asking(self) -> bool:
        """A question is out."""
        return self._asking is not None

    def wakes_at_s(self, *, busy: bool = False) -> float:
        """When `due` may have something; infinite when nothing has happened."""
        return inf if self._asking is not None else self._due_s(busy)

    def _due_s(self, busy: bool) -> float:
        urgent = [at_s for cause, at_s in self._causes.items() if cause in URGENT]
        urgent_s = min([*urgent, *self._lacks.values()], default=inf)
        leisure_s = inf if busy else self._leisure_s()
        return max(min(urgent_s, leisure_s), self._failures.retry_at_s)

    def _leisure_s(self) -> float:
        """When there is something to improve, and time to."""
        settled = [
            at_s + self._settings.settle_s for c, at_s in self._causes.items() if c not in URGENT
        ]
        steady = [self._steady_at_s(offer_id) for offer_id in self._fresh]
        return max(
            min([*settled, *steady], default=inf), self.changed_s + self._settings.cool_down_s
        )

    def _steady_at_s(self, offer_id: str) -> float:
        return self._stands_since_s[offer_id] + self._settings.steady_s

    def imagined(self, running: dict[str, int], now_s: float) -> Ask:
        """The question that would be asked if somebody wanted the whole planned anew now; nothing
        is changed by it."""
        candidates = self._candidates(running, False, now_s)
        return Ask((Cause.OPERATOR,), True, candidates, self._workload)

    def _candidates(
        self, running: dict[str, int], only_steady: bool, now_s: float
    ) -> tuple[Candidate, ...]:
        """Open nodes of the offers that may be named; what is urgent takes any that is not shut."""
        settings = self._settings
        found = []
        for offer_id, offer in self._offers.items():
            shut = now_s < self._shut_until_s.get(offer_id, -inf)
            if shut or (only_steady and now_s < self._steady_at_s(offer_id)):
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
