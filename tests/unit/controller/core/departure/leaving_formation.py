"""A formation that is left, played: true rates, true lengths, a true link, none of which the core
is told but by what was measured of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from random import Random

from services.common.generation import PriorityClass
from services.controller.core.departure.departure import Departure
from services.controller.core.departure.lengths import AnswerLengths
from services.controller.core.departure.move import Choice, Move, Rates, Stream

POSITION_BYTES = 1000.0
MARGIN_S = 0.5
"""Between the end that the core is given and the moment at which all is gone."""
MEAN_TOKENS = 300.0
LIMIT = 1500


@dataclass
class Running:
    """A generation, as it truly is."""

    name: str
    prompt: int
    had: int
    """Output tokens at the notice."""
    answer: int
    """Output tokens when it ends by itself."""
    priority: PriorityClass
    tokens: float = 0.0
    """Output since the notice."""
    sent: float = 0.0
    """Bytes of its blocks that are over."""
    sealed_s: float | None = None
    ended: bool = False
    choice: Choice | None = None

    @property
    def left(self) -> float:
        return self.answer - self.had - self.tokens

    @property
    def positions(self) -> int:
        return self.prompt + self.had + int(self.tokens)

    @property
    def bytes_left(self) -> float:
        return max(0.0, self.positions // 16 * 16 * POSITION_BYTES - self.sent)


@dataclass
class Formation:
    """What is true of it, and what was measured before the notice."""

    running: list[Running]
    notice_s: float
    told: Rates
    told_tokens_per_s: float
    tokens_per_s: float
    link_bytes_per_s: float
    replay_positions_per_s: float
    seal_s: float
    lengths: AnswerLengths
    link: list[str] = field(default_factory=list)
    """Whose blocks travel, in turn."""
    late: list[str] = field(default_factory=list)
    """Sealed when it was too late."""
    slower_from_s: float = float("inf")
    """From then on the link is a third of what it was."""

    @property
    def end_s(self) -> float:
        return self.notice_s - MARGIN_S

    def play(self) -> list[Move]:
        """To its end; what was told of it."""
        departure, now_s, said = Departure(self.end_s), 0.0, list[Move]()
        carried_s, carried = 0.0, 0.0
        while open_now := [one for one in self.running if one.sealed_s is None and not one.ended]:
            rates = self.told
            if carried_s > 0.2:
                rates = replace(rates, link_bytes_per_s=carried / carried_s)
            look = departure.look([self._seen(one) for one in open_now], rates, self.lengths, now_s)
            said += look.told
            for one in open_now:
                one.choice = next(
                    (m.choice for m in look.told if m.generation_id == one.name), one.choice
                )
                if one.name not in look.running:
                    one.sealed_s = now_s + self.seal_s
                    if one.sealed_s > self.notice_s:
                        self.late.append(one.name)
            self.link += [move.generation_id for move in look.pushes]
            next_s = max(look.wakes_at_s, now_s + 0.01)
            busy_s, sent = self._pass(next_s - now_s, now_s)
            carried_s, carried = 0.7 * carried_s + busy_s, 0.7 * carried + sent
            now_s = next_s
        return said

    def _seen(self, one: Running) -> Stream:
        """As the controller knows it."""
        travels = self.told.link_bytes_per_s > 0
        return Stream(
            one.name,
            one.positions,
            (one.had + int(one.tokens),),
            LIMIT,
            self.told_tokens_per_s,
            one.priority,
            int(one.bytes_left) if travels else None,
        )

    def _pass(self, seconds: float, now_s: float) -> tuple[float, float]:
        for one in self.running:
            if one.ended or one.sealed_s is not None:
                continue
            one.tokens += min(one.left, self.tokens_per_s * seconds)
            one.ended = one.left <= 1e-9
        by_name = {one.name: one for one in self.running}
        left_s, sent = seconds, 0.0
        rate = self.link_bytes_per_s / (3 if now_s >= self.slower_from_s else 1)
        for name in list(self.link):
            one = by_name[name]
            takes_s = min(left_s, one.bytes_left / rate)
            one.sent += takes_s * rate
            sent, left_s = sent + takes_s * rate, left_s - takes_s
            if not one.bytes_left or one.ended or one.sealed_s is not None:
                self.link.remove(name)
        return seconds - left_s, sent

    @property
    def decoded(self) -> float:
        """Tokens of all on the formation that goes, from the notice on."""
        return sum(one.tokens for one in self.running)


def formation(seed: int, streams: int | None = None) -> Formation:
    """One by chance: all that was measured is wrong by up to 30 %."""
    random = Random(seed)

    def noisy(true: float) -> float:
        return true * random.uniform(0.7, 1.3)

    notice_s = random.choice((5.0, 10.0, 30.0))
    tokens_per_s = random.uniform(5.0, 40.0)
    running = []
    for index in range(streams or random.randint(1, 12)):
        answer = min(LIMIT, 2 + int(random.expovariate(1 / MEAN_TOKENS)))
        prompt, had = int(random.expovariate(1 / 800)) + 1, random.randrange(answer - 1)
        priority = random.choice(list(PriorityClass))
        running.append(Running(f"g{index}", prompt, had, answer, priority))
    link_bytes_per_s = random.choice((0.0, 1e5, 5e5, 5e6))
    replay_positions_per_s = random.uniform(2000.0, 10000.0)
    seal_s = random.uniform(0.05, 0.25)
    told = Rates(
        replay_s=0.05,
        replay_positions_per_s=noisy(replay_positions_per_s),
        link_bytes_per_s=noisy(link_bytes_per_s),
        push_s=0.05,
        seal_s=noisy(seal_s),
    )
    seen = [2 + int(random.expovariate(1 / MEAN_TOKENS)) for _ in range(200)]
    return Formation(
        running,
        notice_s,
        told,
        noisy(tokens_per_s),
        tokens_per_s,
        link_bytes_per_s,
        replay_positions_per_s,
        seal_s,
        AnswerLengths(seen),
    )


def best_decoded(formation: Formation) -> float:
    """What one decodes that knows all lengths and rates, to be asked before it is played: what ends
    by itself stays; of all ways to share the others between link and prefill it takes the one that
    costs readers the least time, and lays it out as late as that lets it. A reader that waits for
    its replay loses the whole of it, one whose blocks travel no more than the last round."""
    told, seal_at_s = formation.told, formation.end_s - formation.seal_s
    rate = formation.tokens_per_s
    stay = [one.left for one in formation.running if one.left <= rate * seal_at_s]
    leave = [one for one in formation.running if one.left > rate * seal_at_s]
    link = [one.positions * POSITION_BYTES / max(1.0, formation.link_bytes_per_s) for one in leave]
    replay = [
        told.replay_s + (one.positions + rate * seal_at_s) / formation.replay_positions_per_s
        for one in leave
    ]
    best = (inf, 0.0)
    for mask in range(1 << len(leave)):
        pushed = [link[i] + told.push_s for i in range(len(leave)) if mask >> i & 1]
        replayed = [replay[i] for i in range(len(leave)) if not mask >> i & 1]
        if sum(pushed) > formation.end_s:
            continue
        lost_s, decoded = _laid_out(pushed, replayed, formation.end_s, seal_at_s)
        best = min(best, (lost_s + told.push_s * len(pushed), -decoded))
    return sum(stay) - rate * best[1]


def _laid_out(
    pushed: list[float], replayed: list[float], end_s: float, seal_at_s: float
) -> tuple[float, float]:
    """Seconds that readers wait, and that are decoded."""
    decoded, left_at_s = 0.0, end_s
    for takes_s in sorted(pushed):
        decoded += left_at_s
        left_at_s -= takes_s
    replayed = sorted(replayed, reverse=True)
    begins_s, free_s = max(0.0, seal_at_s - sum(replayed[:-1])), 0.0
    lost_s = 0.0
    for takes_s in replayed:
        at_s = min(begins_s, seal_at_s)
        free_s = max(free_s, at_s) + takes_s
        lost_s += free_s - at_s
        decoded += at_s
        begins_s += takes_s
    return lost_s, decoded
