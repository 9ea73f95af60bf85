"""What tenants may take: requests and tokens a minute, and streams at once.

A limit of L a minute is a bucket of L that fills by L/60 a second: over any time of t seconds a
tenant gets L * (1 + t/60) of it at most. Of the tokens that a request may come to, its prompt and
the longest answer it asks for, all are taken before it begins; what it did not come to is given
back at its end. A request that may come to more than the bucket holds takes all there is of a full
one, and the next ones wait for what it took beyond that.

Where there are several routers each has a share of every limit, as the controller told it last, and
room for one request at least: together they let pass L * (1 + t/60) + n of n routers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.common.demand import Shares, TenantDemand
from services.common.errors import ResourceExhausted
from services.common.generation import GenerationRequest
from services.common.tenants import Limits, Tenant

MINUTE_S = 60.0
MAX_KEPT = 8192
"""Reservations whose generation nobody reads, the newest."""
STREAM_AGAIN_S = 1.0
_NO_LIMITS = Limits()
_SLACK = 1e-6
"""Of sums of fractions."""


class RateLimitExceeded(ResourceExhausted):
    """A tenant asks for more than it may."""


class Bucket:
    """One limit of one tenant at this router."""

    def __init__(self, a_minute: float, now_s: float) -> None:
        self.a_minute = a_minute
        self._level = self.capacity
        self._at_s = now_s

    @property
    def capacity(self) -> float:
        """What a full one holds: one at least, else there would never be any."""
        return max(1.0, self.a_minute)

    def level(self, now_s: float) -> float:
        """What it holds; under 0 while more was taken than there was."""
        gained = max(0.0, now_s - self._at_s) * self.a_minute / MINUTE_S
        return min(self.capacity, self._level + gained)

    def resize(self, a_minute: float, now_s: float) -> None:
        """Another limit from now on: what is in it stays, as far as it fits."""
        if a_minute != self.a_minute:
            self._level, self._at_s = self.level(now_s), now_s
            self.a_minute = a_minute
            self._level = min(self._level, self.capacity)

    def take(self, amount: float, now_s: float) -> float:
        """0 when the amount was taken, or all of a full bucket for more than it holds; else the
        seconds until it could be."""
        level, wanted = self.level(now_s), min(amount, self.capacity)
        if level + _SLACK < wanted:
            return (wanted - level) * MINUTE_S / self.a_minute
        self.add(-amount, now_s)
        return 0.0

    def add(self, amount: float, now_s: float) -> None:
        """Gives some back, or takes some without being asked."""
        self._level, self._at_s = min(self.capacity, self.level(now_s) + amount), now_s

    def full_in_s(self, now_s: float) -> float:
        """Seconds until it is full."""
        return (self.capacity - self.level(now_s)) * MINUTE_S / self.a_minute


@dataclass(frozen=True, slots=True)
class Standing:
    """How much of a limit a minute is left at this router."""

    limit: int
    """As the tenant has it, over all routers."""
    remaining: int
    reset_s: float
    """Until as much is left as can be."""


@dataclass(slots=True)
class _Account:
    requests: Bucket | None = None
    tokens: Bucket | None = None
    followed: dict[str, int] = field(default_factory=dict)
    """Sessions by generation."""
    asked_requests: int = 0
    asked_tokens: int = 0
    asked_at_s: float = 0.0
    is_limited: bool = False


class Quotas:
    """All tenants' at one router."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._reserved: dict[str, tuple[Tenant, int]] = {}
        """Tokens taken for a generation and not settled yet."""
        self.shares = Shares()
        """As the controller told them last."""

    def ask(self, tenant: Tenant, now_s: float) -> None:
        """One more request. Raises RateLimitExceeded."""
        account = self._account(tenant, now_s)
        account.asked_requests += 1
        account.asked_at_s = now_s
        account.is_limited = tenant.limits != _NO_LIMITS
        if account.requests is not None:
            wait_s = account.requests.take(1, now_s)
            if wait_s:
                limit = tenant.limits.requests_per_minute
                raise _exceeded(f"{limit} requests a minute", wait_s)

    def reserve(self, tenant: Tenant, request: GenerationRequest, now_s: float) -> None:
        """Takes what a request may come to. Raises RateLimitExceeded."""
        account, generation_id = self._account(tenant, now_s), request.generation_id
        tokens = len(request.prompt_ids) + request.choices * request.sampling.max_tokens
        account.asked_tokens += tokens
        if account.tokens is not None:
            wait_s = account.tokens.take(tokens, now_s)
            if wait_s:
                limit = tenant.limits.tokens_per_minute
                raise _exceeded(f"{limit} tokens a minute, of which this may take {tokens}", wait_s)
            self._reserved[generation_id] = (tenant, tokens)
            if len(self._reserved) > MAX_KEPT:
                del self._reserved[next(iter(self._reserved))]

    def settle(self, generation_id: str, tokens: int, now_s: float) -> None:
        """A request came to so many; what it took beyond that is given back."""
        reserved = self._reserved.pop(generation_id, None)
        if reserved is not None:
            tenant, taken = reserved
            bucket = self._account(tenant, now_s).tokens
            if bucket is not None:
                bucket.add(taken - tokens, now_s)

    def check_stream(self, tenant: Tenant, generation_id: str) -> None:
        """Raises RateLimitExceeded where one more generation is followed than may be; a reader who
        comes back to one counts once."""
        most = tenant.limits.streams
        if most is None:
            return
        followed = self._of(tenant.name).followed
        here = max(1, int(most * self.shares.of(tenant.name) + _SLACK))
        if generation_id not in followed and len(followed) >= here:
            raise _exceeded(f"{most} streams at once", STREAM_AGAIN_S)

    def opened(self, name: str, generation_id: str) -> None:
        """A tenant's generation has one more reader, or is about to have one."""
        if name:
            followed = self._of(name).followed
            followed[generation_id] = followed.get(generation_id, 0) + 1

    def closed(self, name: str, generation_id: str) -> None:
        """And one less."""
        if name:
            followed = self._accounts[name].followed
            followed[generation_id] -= 1
            if not followed[generation_id]:
                del followed[generation_id]

    def standings(self, tenant: Tenant, now_s: float) -> tuple[Standing | None, Standing | None]:
        """Of requests and of tokens; None where there is no limit."""
        account, limits = self._account(tenant, now_s), tenant.limits
        return (
            _standing(limits.requests_per_minute, account.requests, now_s),
            _standing(limits.tokens_per_minute, account.tokens, now_s),
        )

    def demands(self, now_s: float) -> Mapping[str, TenantDemand]:
        """What tenants with limits have asked for since the start, of those that did within the
        last minute, or of whose limits this router was told its share."""
        demands = {name: TenantDemand(0, 0, share) for name, share in self.shares.by_tenant.items()}
        for name, account in self._accounts.items():
            recent = account.is_limited and now_s - account.asked_at_s < MINUTE_S
            if recent or name in demands:
                demands[name] = TenantDemand(
                    account.asked_requests, account.asked_tokens, self.shares.of(name)
                )
        return demands

    def _of(self, name: str) -> _Account:
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = _Account()
        return account

    def _account(self, tenant: Tenant, now_s: float) -> _Account:
        """As the tenant's limits, and this router's share of them, are by now."""
        account = self._of(tenant.name)
        share, limits = self.shares.of(tenant.name), tenant.limits
        account.requests = _sized(account.requests, limits.requests_per_minute, share, now_s)
        account.tokens = _sized(account.tokens, limits.tokens_per_minute, share, now_s)
        return account


def _sized(bucket: Bucket | None, limit: int | None, share: float, now_s: float) -> Bucket | None:
    if limit is None:
        return None
    if bucket is None:
        return Bucket(limit * share, now_s)
    bucket.resize(limit * share, now_s)
    return bucket


def _standing(limit: int | None, bucket: Bucket | None, now_s: float) -> Standing | None:
    if limit is None or bucket is None:
        return None
    left = int(bucket.level(now_s) + _SLACK)
    return Standing(limit, max(0, left), bucket.full_in_s(now_s))


def _exceeded(what: str, wait_s: float) -> RateLimitExceeded:
    return RateLimitExceeded(
        f"Rate limit reached: {what}; try again in {wait_s:.3f} s", retry_after_s=wait_s
    )
