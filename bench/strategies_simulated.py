"""A scenario played to the production cores on a virtual clock, under one strategy.

Steps take the same time whatever nodes compute them: what is compared is what strategies do when
nodes come and go, not how fast their plans are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from random import Random

from bench.scenario import Ask, Scenario
from bench.strategy_figures import Again, Answer, Figures, computed_again, figures_of
from services.common.generation import GenerationRequest, LayerRange, Sampling
from services.common.speeds import parse_speeds
from services.controller.core.cluster.actions import LogEvent
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.question import Wishes
from services.controller.core.ledger.outcomes import LedgerEvent
from services.controller.core.strategy import STRATEGIES
from services.controller.providers.market_file import MarketScript
from services.engine.core.scheduler import SchedulerSettings
from services.router.core.follower_settings import FollowerSettings
from simulator.environment.clock import Clock
from simulator.environment.settings import FACTS, SimulationSettings
from simulator.fleet.playing import MarketPlay
from simulator.processes.client import Client
from simulator.unwatched import Unwatched
from simulator.world import World

LOOK_S = 0.25
READY_WITHIN_S = 60.0
ENDS_WITHIN_S = 600.0
"""Behind the last request."""
WORD_IDS, EOS_IDS = 1000, (2,)
LOAD_S, STEP_S = 1.0, 0.06
"""Of a stage in the mean, and of a step: about as long as on a laptop that is busy serving."""
KV_BLOCKS = 256
HORIZON_S = 900.0
SECONDS_AN_HOUR = 3600.0


class Kept(Unwatched):
    """Keeps what the figures come of."""

    def __init__(self) -> None:
        self.events: list[LedgerEvent] = []
        self.happened: list[tuple[float, LogEvent]] = []
        """In the cluster, and when."""
        self.ended_s: dict[str, float] = {}
        self.clock: Clock | None = None
        """Of the world, once that is made."""

    def ledger_event(self, event: LedgerEvent) -> None:
        self.events.append(event)

    def cluster_event(self, cluster: Cluster, event: LogEvent) -> None:
        self.happened.append((self._now_s, event))

    def client_ended(self, client: Client) -> None:
        self.ended_s[client.request.generation_id] = self._now_s

    @property
    def _now_s(self) -> float:
        return self.clock.now_s if self.clock is not None else 0.0


def layers_by(shares: Sequence[float]) -> tuple[LayerRange, ...]:
    """All layers of the model, a range for each share."""
    ends = [round(FACTS.layer_count * end / sum(shares)) for end in accumulate(shares)]
    return tuple(LayerRange(start, end) for start, end in pairwise([0, *ends]))


def settings_of(scenario: Scenario, strategy: str) -> SimulationSettings:
    """Those of a mesh that `shunt up --strategy` starts, as far as they matter here."""
    capabilities = STRATEGIES[strategy]
    speeds = [speed for part in parse_speeds(scenario.nodes) for speed in part]
    nodes = MarketScript("", scenario.offers).shapes((speed, "native") for speed in speeds)
    plain = SimulationSettings()
    cool_down_s = 0.0 if capabilities.uniform else 3.0
    shares = [1.0 for _ in speeds] if capabilities.uniform else speeds
    return replace(
        plain,
        cluster=replace(
            plain.cluster, initial=nodes, expected_nodes=len(nodes), strategy=capabilities
        ),
        ledger=replace(plain.ledger, strategy=capabilities, retention_s=ENDS_WITHIN_S),
        follower=FollowerSettings(),
        scheduler=SchedulerSettings(),
        kv_blocks=KV_BLOCKS,
        offers=scenario.offers,
        first_layers=layers_by(shares),
        wishes=Wishes(nodes_max=len(nodes), horizon_s=HORIZON_S),
        replanning=replace(
            plain.replanning,
            settle_s=1.0,
            steady_s=2.0,
            cool_down_s=cool_down_s,
            anew=capabilities.uniform,
        ),
        load_s=LOAD_S,
        step_s=STEP_S,
    )


class Play:
    """One world and what the scenario does to it."""

    def __init__(self, scenario: Scenario, strategy: str) -> None:
        self.kept = Kept()
        self.world = World(Random(scenario.market), settings_of(scenario, strategy), self.kept)
        self.kept.clock = self.world.clock
        self.clients: dict[int, Client] = {}
        self.asked_s: dict[int, float] = {}
        self.dollars = 0.0
        self._scenario = scenario

    def run(self) -> float:
        """Until every answer is there; from ready to that, in seconds. Raises TimeoutError."""
        world, scenario = self.world, self._scenario
        if not world.clock.run(READY_WITHIN_S, lambda: bool(world.controller.cluster.routes()[1])):
            raise TimeoutError(f"nothing serves within {READY_WITHIN_S:g} s")
        ready_s = world.clock.now_s
        market = MarketPlay(world.provider)
        for event in scenario.events:
            world.clock.after(event.at_s, market.happens, event)
        for number, ask in enumerate(scenario.asks):
            world.clock.after(ask.at_s, self._ask, number, ask)
        world.clock.after(LOOK_S, self._pay)

        def done() -> bool:
            return len(self.kept.ended_s) == len(scenario.asks)

        last_s = max((ask.at_s for ask in scenario.asks), default=0.0)
        if not world.clock.run(ready_s + last_s + ENDS_WITHIN_S, done):
            raise TimeoutError(f"answers are missing {ENDS_WITHIN_S:g} s behind the last request")
        return world.clock.now_s - ready_s

    def _pay(self) -> None:
        rate = self.world.controller.dealer.market.cost_per_hour() or 0.0
        self.dollars += rate * LOOK_S / SECONDS_AN_HOUR
        self.world.clock.after(LOOK_S, self._pay)

    def _ask(self, number: int, ask: Ask) -> None:
        random = Random(" ".join(ask.words))
        prompt = tuple(random.randrange(WORD_IDS) for _ in ask.words)
        seed = ask.seed or 0
        sampling = Sampling(
            max_tokens=ask.output_tokens, seed=seed, eos_token_ids=EOS_IDS, ignore_eos=True
        )
        self.asked_s[number] = self.world.clock.now_s
        request = GenerationRequest(f"g{number}", FACTS.ref, prompt, sampling)
        self.clients[number] = self.world.ask(request)

    def answers(self) -> list[Answer]:
        return [self._answer(number, client) for number, client in sorted(self.clients.items())]

    def _answer(self, number: int, client: Client) -> Answer:
        if client.error is not None:
            return Answer(error=client.error.message)
        took_s = self.kept.ended_s[f"g{number}"] - self.asked_s[number]
        return Answer(took_s, len(client.ids[0]), client.ids)

    def again(self) -> Again:
        prompts = {f"g{n}": len(c.request.prompt_ids) for n, c in self.clients.items()}
        return computed_again(self.kept.events, prompts)


def simulated(
    scenario: Scenario, strategy: str, first: Sequence[Answer] = ()
) -> tuple[Figures, list[Answer]]:
    """One run; `first` are the answers to compare with."""
    play = Play(scenario, strategy)
    ran_s = play.run()
    answers = play.answers()
    figures = figures_of(
        strategy,
        answers,
        within_s=scenario.within_s,
        ran_s=ran_s,
        dollars=play.dollars,
        again=play.again(),
        first=first,
    )
    return figures, answers
