"""Prefill and decode apart: generations begin at one pipeline and go on at another.

In every schedule plans may give the pipelines other phases and weights while it goes on; in every
fifth placement is asked for these, of pipelines that keep what they have loaded. In two thirds of
them something else happens meanwhile: a node is killed or told that it will be taken, a head
freezes, the controller or a router crashes, a line breaks. In every second one KV blocks travel:
some are not kept, or come late, in part or not at all. In the end all is as it should be, and what
comes then goes by the phases. Run as a program with seeds it prints the first violation.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from oracles import Oracle
from seeds import program
from watch import judged

from services.common.generation import GenerationRequest, Sampling
from services.common.phases import PipelinePhase
from services.controller.core.cluster.plan import Plan, PlannedPipeline
from services.controller.core.cluster.question import Wishes
from services.controller.core.strategy import STRATEGIES
from services.engine.core.actions import SequenceKey
from simulator.environment.settings import MODEL, SHAPE, SimulationSettings
from simulator.processes.engine import SimulatedEngine
from simulator.world import World

PREFILL, DECODE, BOTH = PipelinePhase.PREFILL, PipelinePhase.DECODE, PipelinePhase.BOTH
SPLITS = (
    (PREFILL, DECODE),
    (DECODE, PREFILL),
    (PREFILL, DECODE, DECODE),
    (PREFILL, PREFILL, DECODE),
    (PREFILL, BOTH, DECODE),
)
PROMPTS = (3, 20, 40, 40, 120)
LENGTHS = (1, 2, 30, 80)
WEIGHTS = (1.0, 1.0, 3.0)
READY_S = 2.5
"""By then all pipelines serve."""
ASKED_FOR_S = 1.5
TROUBLED_S = READY_S + ASKED_FOR_S + 1.0
"""Behind it nothing happens any more, but what is under way."""
OVER_S = 6.0
"""So long behind it who was told to go is gone, and who was frozen is heard again."""
END_S = 120.0
QUIET_S = 15.0
TROUBLES = ("kill", "kill", "kill", "notice", "freeze", "crash", "router", "break", "deaf")


class SplitOracle(Oracle):
    """Who samples what."""

    def __init__(self, *, exact: bool) -> None:
        super().__init__(exact=exact)
        self.by_phase = False
        """All pipelines serve, and nothing happens to them: generations that come go by phases."""
        self.began_at: Counter[PipelinePhase] = Counter()
        self.went_on_at: Counter[str] = Counter()
        """Generations by the pipeline that they were handed on to."""

    def sampled(self, head: str, key: SequenceKey, position: int, token: int) -> None:
        """A last stage drew a token."""
        super().sampled(head, key, position, token)
        pipeline = next(
            (
                p
                for p in self.world.controller.cluster._state.pipelines.values()
                if p.formation is not None and p.formation.head.incarnation == head
            )
            if self.world is not None
            else iter(()),
            None,
        )
        if pipeline is None:
            return
        if position == 0:
            self.began_at[pipeline.phase] += 1
        if position == 1 and pipeline.phase is not PREFILL:
            self.went_on_at[pipeline.pipeline_id] += 1
        if not self.by_phase or key.choice:
            return
        if position == 0 and pipeline.phase is DECODE:
            self.fail(32, f"{key.generation_id} begins at {pipeline.pipeline_id}, which decodes")
        if position > 1 and pipeline.phase is PREFILL:
            self.fail(32, f"{key.generation_id} stays at {pipeline.pipeline_id}, at {position}")

    def check_phases(self) -> None:
        """Pipelines have those that the plan gives them."""
        cluster = self.world.controller.cluster if self.world is not None else None
        plan = cluster.plan if cluster is not None else None
        if cluster is None or plan is None:
            return
        has = {name: (p.phase, p.onward) for name, p in cluster._state.pipelines.items()}
        for _, planned in plan.pipelines():
            if has[planned.pipeline_id] != (planned.phase, planned.onward):
                self.fail(
                    32, f"{planned.pipeline_id} has {has[planned.pipeline_id]}, not {planned}"
                )

    def check_by_phase(self, name: str, ids: int) -> None:
        """A generation that came while nothing happened has moved once, if anything was left."""
        if self.handed_on[name] != (ids > 1):
            self.fail(32, f"{name} of {ids} ids is handed on {self.handed_on[name]} times")


class SplitSchedule:
    """One world whose pipelines have phases."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        phases, travels, asks = random.choice(SPLITS), seed % 2 < 1, seed % 5 == 4
        settings = SimulationSettings(exact=seed % 4 < 2)
        settings = replace(
            settings,
            cluster=replace(
                settings.cluster,
                phases=phases,
                strategy=STRATEGIES["thunderserve" if asks else "full"],
                initial=(SHAPE,) * (2 * len(phases)),
                expected_nodes=2 * len(phases),
                pipelines=len(phases),
            ),
            scheduler=replace(settings.scheduler, max_sequences=random.choice((1, 2, 4))),
            kv_blocks=256 if travels else random.choice((19, 32, 64)),
            kv_travels=travels,
            wishes=Wishes() if asks else None,
        )
        self.oracle = SplitOracle(exact=settings.exact)
        self.world = World(random, settings, self.oracle)
        self.oracle.world = self.world
        self.trouble = random.choice(TROUBLES) if seed % 3 else ""
        self.arrivals = random.randint(2, 7)
        self.flips = random.choice((0, 0, 1, 2))
        self.oracle.by_phase = not (self.trouble or self.flips)
        self._come = 0
        for _ in range(self.arrivals):
            self.world.clock.after(READY_S + ASKED_FOR_S * random.random(), self._arrive)
        for _ in range(self.flips):
            self.world.clock.after(READY_S + (TROUBLED_S - READY_S) * random.random(), self.flip)
        if self.trouble:
            for _ in range(random.choice((1, 1, 2))):
                at_s = READY_S + (ASKED_FOR_S + 0.5) * random.random()
                self.world.clock.after(at_s, self._strike)

    def _arrive(self) -> None:
        random, number = self.random, self._come
        self._come += 1
        sampling = Sampling(
            max_tokens=random.choice(LENGTHS),
            seed=number,
            eos_token_ids=(2,),
            ignore_eos=random.random() < 0.7,
        )
        prompt = tuple(random.randrange(1000) for _ in range(random.choice(PROMPTS)))
        choices = 1 if self.oracle.by_phase else random.choice((1, 1, 2))
        self.world.ask(GenerationRequest(f"g{number}", MODEL, prompt, sampling, choices=choices))

    def flip(self) -> None:
        """A plan of the same stages has other phases and weights."""
        controller = self.world.controller
        if not controller.alive or controller.frozen or controller.cluster.plan is None:
            return
        if controller.cluster.settings.strategy.weights_stay:
            controller.replans.replan()
            return
        plan = controller.cluster.plan
        (deployment,) = plan.deployments
        names = [pipeline.pipeline_id for pipeline in deployment.pipelines]
        phases = list(self.random.choice([s for s in SPLITS if len(s) >= 2])[: len(names)])
        self.random.shuffle(phases)
        by_name = dict(zip(names, phases, strict=False))
        pipelines = tuple(self._flipped(one, by_name) for one in deployment.pipelines)
        controller.adopt(
            Plan(
                controller.cluster.view.next_plan_number,
                (replace(deployment, pipelines=pipelines),),
                plan.why,
            )
        )

    def _flipped(
        self, pipeline: PlannedPipeline, phases: dict[str, PipelinePhase]
    ) -> PlannedPipeline:
        phase, random = phases.get(pipeline.pipeline_id, BOTH), self.random
        decode = [name for name, other in phases.items() if other is not PREFILL]
        named = phase is PREFILL and random.random() < 0.5
        onward = tuple((name, random.choice(WEIGHTS)) for name in decode) if named else ()
        return replace(pipeline, phase=phase, onward=onward)

    def _strike(self) -> None:
        random, world = self.random, self.world
        placed = [engine for engine in world.engines if engine.place]
        heads = [e for e in placed if e.batching.lead is not None and e.core.open_generations]
        victim: SimulatedEngine | None = None
        if placed:
            victim = random.choice(heads if heads and random.random() < 0.7 else placed)
        if self.trouble == "crash":
            world.crash_controller(0.2 + random.random())
        elif self.trouble == "router":
            router = random.choice(world.routers)
            if router.alive and sum(r.alive for r in world.routers) > 1:
                world.crash_router(router, 1.0)
        elif victim is None:
            return
        elif self.trouble == "kill":
            victim.kill()
        elif self.trouble == "notice":
            world.provider.notice(victim.node_id, random.choice((0.3, 1.5, 4.0)), taken=True)
        elif self.trouble == "freeze":
            victim.freeze()
            world.clock.after(0.3 + 2.0 * random.random(), victim.thaw)
        elif self.trouble == "break":
            world.network.overrun_for(random.choice(world.routers), victim, 0.5 + random.random())
        elif victim._journal is not None:  # its seals come late
            victim._journal.break_line()

    # The whole

    def run(self) -> None:
        """Raises Violation."""
        judged(self._run)

    def _run(self) -> None:
        world, oracle = self.world, self.oracle

        def done() -> bool:
            return len(world.clients) == self.arrivals and all(c.ended for c in world.clients)

        def formations() -> dict[str, str]:
            pipelines = world.controller.cluster.view.pipelines()
            return {pipeline.pipeline_id: pipeline.formation_id for pipeline in pipelines}

        world.clock.run(READY_S)
        at_first = formations()
        world.clock.run(END_S, done)
        oracle.check_ended()
        if not self.trouble:
            oracle.check_grants(0, 0)
            if formations() != at_first:
                oracle.fail(32, f"{at_first} became {formations()}, and phases alone were others")
        if oracle.by_phase:
            self._check_by_phase(range(self.arrivals))
        world.clock.run(max(world.clock.now_s, TROUBLED_S + (OVER_S if self.trouble else 0.0)))
        world.clock.run(world.clock.now_s + QUIET_S, oracle.serves)
        oracle.check_serves()
        oracle.check_phases()
        self._ask_in_quiet()
        oracle.check_one_sequence()
        world.clock.run(world.clock.now_s + 9.0)
        oracle.check_rest()

    def _ask_in_quiet(self) -> None:
        """When all serve, generations go by the phases that the plan has by then."""
        world, oracle = self.world, self.oracle
        if not self._is_split():
            return
        world.clock.run(world.clock.now_s + 1.0)  # routers have heard of it
        first, oracle.by_phase = len(world.clients), True
        for _ in range(3):
            self._arrive()
        self.arrivals = len(world.clients)
        world.clock.run(world.clock.now_s + END_S, lambda: all(c.ended for c in world.clients))
        oracle.check_ended()
        self._check_by_phase(range(first, self.arrivals))

    def _is_split(self) -> bool:
        pipelines = self.world.controller.cluster._state.pipelines.values()
        phases = {pipeline.phase for pipeline in pipelines if pipeline.is_ready}
        return PREFILL in phases and DECODE in phases and BOTH not in phases

    def _check_by_phase(self, numbers: range) -> None:
        if self._is_split():
            for client in self.world.clients[numbers.start : numbers.stop]:
                name = client.request.generation_id
                self.oracle.check_by_phase(name, len(client.ids[0]))


def _happened(schedule: SplitSchedule) -> Counter[str]:
    handed_on = schedule.oracle.handed_on.total()
    return Counter({"handed on": handed_on, "flips": schedule.flips, schedule.trouble: 1})


if __name__ == "__main__":
    program(SplitSchedule, _happened)
