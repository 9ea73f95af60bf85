"""When a request's first token would come at a pipeline, from what its head has told of its load.

A batch has places, and steps with so many rows. A request waits until those before it have found a
place and one more is free, and until the prompts before it and its own are read. Who is before it
follows from the order that heads keep (`services.common.fair_queue`): all of lower lanes, its own
tenant's, and of each other tenant in its lane as much as the weights grant against that.

What a head has told is up to a quarter of a second old, so what was sent to it since counts as
well. What is left over is measured: how long requests have taken of late against what was said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, exp, log

from services.common.exchange import HeadLoad, TenantLoad
from services.common.fair_queue import lane_of
from services.common.generation import GenerationRequest

UNDERWAY_S = 0.1
"""What was sent so short a time before a head told its load may not be in it."""
FORGETTING = 0.95
"""What is left of one error's weight when the next one is measured."""
MOST_WRONG = 4.0
"""A prediction is corrected by no more than this factor, either way."""
LEAST_MEASURED_S = 0.02
"""Below that a prediction says nothing, and its error neither."""


@dataclass(frozen=True, slots=True)
class Comer:
    """What of a request decides when it is answered."""

    tenant: str
    weight: int
    lane: int
    choices: int
    rows: int
    """Positions of its prompt that are to be read."""
    positions: int
    """Of its prompt, whoever has them."""

    @classmethod
    def of(cls, request: GenerationRequest, found: int = 0) -> Comer:
        """With so many positions of its prompt computed already."""
        length = request.prompt_tokens
        rows, lane = max(1, length - found), lane_of(request.priority)
        return cls(request.tenant, request.tenant_weight, lane, request.choices, rows, length)


@dataclass(frozen=True, slots=True)
class Prediction:
    """In seconds from now."""

    first_token_s: float
    tokens_per_s: float
    """Of each of its choices, then."""
    surely_s: float
    """With the mean error of late, as TCP reckons with its round trips' (RFC 6298): by then most
    first tokens have come."""


def predict(load: HeadLoad, comer: Comer) -> Prediction:
    """Of a request that is sent now."""
    before = [one for one in load.tenants if one.lane <= comer.lane]
    mine = _of(load, comer)
    queued, rows = float(mine.queued), float(mine.rows + comer.rows)
    for one in before:
        if one.tenant != comer.tenant or one.lane != comer.lane:
            share = _share_before(one, mine, comer) if one.lane == comer.lane else 1.0
            queued += share * one.queued
            rows += share * one.rows
    running = sum(one.running for one in before)
    in_use = min(load.places, max(running, 1))
    decode_s = load.round_steps * load.step_s + load.row_s * in_use
    waiting = _places_lacking(load, before, mine, comer, queued)
    # Places become free as answers end; the prompts that take them are read beside the others.
    places_s = _steps_until(load, waiting, in_use) * decode_s + load.row_s * (rows - comer.rows)
    own_s = _reading_s(load, comer.rows, in_use)
    first_s = max(places_s + own_s if waiting else own_s, _reading_s(load, rows, in_use))
    in_flight_s = decode_s / 2 if load.running else 0.0
    rate = 1 / decode_s if decode_s else float("inf")
    first_s += in_flight_s + load.lag_s
    return Prediction(first_s, rate, first_s)


def _of(load: HeadLoad, comer: Comer) -> TenantLoad:
    """What the request's tenant has in its lane."""
    nothing = TenantLoad(comer.tenant, comer.lane, comer.weight, 0, 0, 0)
    its = (o for o in load.tenants if (o.tenant, o.lane) == (comer.tenant, comer.lane))
    return next(its, nothing)


def _share_before(other: TenantLoad, mine: TenantLoad, comer: Comer) -> float:
    """Of what another tenant has in the same lane, what comes before the request."""
    granted = (mine.running + mine.queued + 1) * other.weight / comer.weight
    return min(1.0, granted / max(1, other.running + other.queued))


def _places_lacking(
    load: HeadLoad,
    before: Sequence[TenantLoad],
    mine: TenantLoad,
    comer: Comer,
    queued: float,
) -> float:
    """How many must become free before it has one."""
    free = 0
    if not any(one.queued for one in before):  # else something lacks already, whatever it is
        running = sum(one.running for one in before)
        yielding = load.running - running
        room = yielding + load.free_positions // max(1, comer.positions + 1)
        free = min(load.places - running, room)
    lacking = max(0.0, queued + 1 - free)
    weights = {o.tenant: o.weight for o in before if o.lane == comer.lane and o.running}
    if lacking and set(weights) - {comer.tenant}:  # it may take others' places, up to its share
        weights[comer.tenant] = comer.weight
        part = comer.weight / sum(weights.values())
        own = max(0.0, mine.queued + 1 - max(0.0, load.places * part - mine.running))
        lacking = min(lacking, own / part)
    return lacking


def _steps_until(load: HeadLoad, places: float, in_use: int) -> float:
    """Until so many have become free. Who begins together ends together: behind those that run
    come, in the same order, those that have taken their places."""
    running = load.running
    if not (load.ends and running):
        return places * load.answer_tokens / in_use
    rounds = max(0, ceil(places / running) - 1)
    parts = len(load.ends) - 1
    counts = (0, 1, *(ceil(running * part / parts) for part in range(1, parts + 1)))
    left = places - rounds * running
    behind = next(i for i, count in enumerate(counts) if count >= left)
    if behind == 0:
        return 0.0
    steps, (few, many) = (0, *load.ends), counts[behind - 1 : behind + 1]
    share = (left - few) / (many - few)
    within = steps[behind - 1] + share * (steps[behind] - steps[behind - 1])
    return rounds * load.answer_tokens + within


def _reading_s(load: HeadLoad, rows: float, decodes: int) -> float:
    """Steps that read so many rows, each beside its part of those that decode."""
    beside = decodes / load.round_steps
    steps = ceil(rows / max(1, load.step_rows - beside))
    return steps * (load.step_s + beside * load.row_s) + rows * load.row_s


class Predictor:
    """What is known of the load of every head, and how far predictions were off."""

    def __init__(self) -> None:
        self._loads: dict[str, HeadLoad] = {}
        self._sent: dict[str, deque[tuple[float, Comer]]] = {}
        """What was sent to each formation of late, and when."""
        self._off: dict[str, float] = {}
        """The logarithm of what was measured over what was predicted, by formation."""
        self._spread: dict[str, float] = {}
        """How far logarithms are from that, on the mean."""

    def told(self, formation_id: str, load: HeadLoad, now_s: float) -> None:
        """A head told its load."""
        sent = self._sent.setdefault(formation_id, deque())
        while sent and sent[0][0] < now_s - UNDERWAY_S:
            sent.popleft()
        for _, comer in sent:
            load = _with(load, comer)
        self._loads[formation_id] = load

    def keep(self, formation_ids: Iterable[str]) -> None:
        """The other formations are gone."""
        kept = set(formation_ids)
        for known in (self._loads, self._sent, self._off, self._spread):
            for name in known.keys() - kept:
                del known[name]

    def sent(self, formation_id: str, comer: Comer, now_s: float) -> None:
        """A request is on its way there."""
        load = self._loads.get(formation_id)
        if load is not None:
            self._sent[formation_id].append((now_s, comer))
            self._loads[formation_id] = _with(load, comer)

    def predict(self, formation_id: str, comer: Comer) -> Prediction | None:
        """None: nothing is known of its head yet."""
        load = self._loads.get(formation_id)
        if load is None:
            return None
        said = predict(load, comer)
        first_s = said.first_token_s * exp(self._off.get(formation_id, 0.0))
        surely_s = first_s * exp(self._spread.get(formation_id, 0.0))
        return replace(said, first_token_s=first_s, surely_s=surely_s)

    def has_room(self, formation_id: str, comer: Comer) -> bool:
        """A place is free there for a request that comes before nobody; also where nothing is known
        yet."""
        load = self._loads.get(formation_id)
        if load is None:
            return True
        before = [one for one in load.tenants if one.lane <= comer.lane]
        return not _places_lacking(load, before, _of(load, comer), comer, 0.0)

    def measured(self, formation_id: str, predicted_s: float, took_s: float) -> None:
        """How long it was to the first token of a request of which this was said."""
        if formation_id not in self._loads or predicted_s < LEAST_MEASURED_S:
            return
        off = self._off.get(formation_id, 0.0)
        # What was said held the correction of its time, which has hardly changed since.
        error = log(max(took_s, LEAST_MEASURED_S) / predicted_s)
        most = log(MOST_WRONG)
        self._off[formation_id] = min(most, max(-most, off + (1 - FORGETTING) * error))
        spread = self._spread.get(formation_id, 0.0)
        self._spread[formation_id] = spread + (1 - FORGETTING) * (min(most, abs(error)) - spread)


def _with(load: HeadLoad, comer: Comer) -> HeadLoad:
    """The load once the request is there as well."""
    mine = _of(load, comer)
    before = [one for one in load.tenants if one.lane <= comer.lane]
    if _places_lacking(load, before, mine, comer, 0.0):
        after = replace(mine, queued=mine.queued + comer.choices, rows=mine.rows + comer.rows)
        return replace(load, tenants=(*(o for o in load.tenants if o is not mine), after))
    after = replace(mine, running=mine.running + comer.choices, rows=mine.rows + comer.rows)
    return replace(
        load,
        running=load.running + comer.choices,
        free_positions=max(0, load.free_positions - comer.positions),
        tenants=(*(o for o in load.tenants if o is not mine), after),
    )
