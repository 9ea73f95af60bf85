"""Random fault schedules: a seed decides everything, faults are steered at phases of a generation.

Run as a program with seeds it prints the table fault × phase, or the first violation.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random

from faults import FAULTS, MESSAGE_FAULTS, ROWS, Faults
from oracles import Oracle
from phases import PHASES, phase_of
from plans import Plans
from seeds import program
from strangers import Stranger
from watch import judged

from services.common.errors import FailedPrecondition
from services.common.generation import GenerationRequest, Sampling
from services.controller.core.strategy import STRATEGIES
from simulator.environment.network import Trouble
from simulator.environment.settings import BOTH, SimulationSettings
from simulator.processes.client import Client
from simulator.world import World

RARE = ("queued", "prefill", "sealing", "granting", "attaching", "finished")
"""Phases that faults are steered at twice as often: they pass in no time."""
SCARCE = {
    "queued": ("restart", "restart", "break", "stop", "client"),
    "prefill": ("stop", "restart", "client"),
    "granting": ("notice", "kill", "kill", "restart", "stop", "break"),
    "finished": ("break", "stop", "client", "notice", "restart", "kill", "kill"),
    "sealing": ("restart", "stop", "kill", "kill", "break", "client", "notice"),
}
"""Rows that meet a phase more seldom than others."""
EARLY = ("queued", "prefill", "attaching")
"""Phases of every generation's first moments."""
CAUSES = {
    "sealing": ("long_notice", "long_notice", "absence"),
    "granting": ("long_notice", "kill_head", "kill_stage", "line_break"),
    "attaching": ("long_notice", "kill_stage", "line_break"),
}
"""What brings a generation to a phase that it would not see by itself."""
LACKING = [STRATEGIES[name] for name in ("migration", "concurrent-init", "none")]
FAULTS_CEASE_S = 7.0
STOPS = (("107",), ("7 11", "105 1"))
"""Of one id, and of a few that follow each other."""
PROMPTS = (1, 3, 20, 40)
ENDLESS = 260
END_S = 60.0
SPARED = 0.25
"""Share of the schedules whose mesh keeps a spare."""
COMPARED = 0.1
"""Share of the schedules that lack something."""
SPARED_S = 12.0
"""It is there, and loaded, so long after the plan is carried out at the latest."""
CARRIED_OUT_S = 21.0
"""A plan is carried out so long after the last fault, and nine seconds, at the latest."""


@dataclass(slots=True)
class Planned:
    """A fault that waits for its phase."""

    fault: str
    phase: str
    client: int
    not_before_s: float
    by_s: float


class Schedule:
    """One world and what happens to it."""

    places = (1, 1, 2, 4)
    """Of sequences in a batch."""
    kv_blocks = (19, 19, 64)
    """The least holds one of the longest sequences, and few of them together."""
    ahead_s = 0.0
    """Blocks travel, and go ahead of what is handed over for so long; 0: they do not."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random = Random(seed)
        self.exact = seed % 2 == 0
        self.oracle = Oracle(exact=self.exact)
        settings = SimulationSettings(
            exact=self.exact,
            exits_seen=random.random() < 0.5,
            launch_fails=0.2 if random.random() < 0.2 else 0.0,
            launch_lost=0.15 if random.random() < 0.1 else 0.0,
            plan_fails=0.5 if random.random() < 0.1 else 0.0,
            load_fails=0.4 if random.random() < 0.1 else 0.0,
            other_class=0.2 if random.random() < 0.05 else 0.0,
        )
        batches = replace(settings.scheduler, max_sequences=random.choice(self.places))
        settings = replace(
            settings,
            scheduler=batches,
            kv_blocks=random.choice(self.kv_blocks),
            room=Random(f"{seed} room").choice((1, 2, 3)),
        )
        if random.random() < 0.1:  # nobody launches nodes: they come by themselves
            cluster = replace(settings.cluster, expected_nodes=5)
            settings = replace(settings, cluster=cluster)
        self._of_spares = Random(f"{seed} spares")
        if self._of_spares.random() < SPARED:
            cluster = replace(settings.cluster, spares=1)
            settings = replace(settings, cluster=cluster)
        chance = Random(f"{seed} strategy")
        if chance.random() < COMPARED:  # who starts over needs heads that say the same again
            strategy = chance.choice(LACKING if self.exact else LACKING[:1])
            settings = replace(
                settings,
                cluster=replace(settings.cluster, strategy=strategy),
                ledger=replace(settings.ledger, strategy=strategy),
            )
        self._models = Random(f"{seed} models")
        if self._models.random() < 1 / 8:
            settings = replace(settings, goals=BOTH)
        if self.ahead_s:
            cluster = replace(settings.cluster, ahead_s=self.ahead_s)
            settings = replace(settings, cluster=cluster, kv_travels=True)
        self.world = World(random, self._of_its_kind(settings), self.oracle)
        self.oracle.world = self.world
        self._faults = Faults(self.world, random)
        self.world.network.struck = self._struck
        self.hits: Counter[tuple[str, str]] = Counter()
        self.disruptions = 0
        self._alike = Random(f"{seed} alike")
        self._arrivals = random.choice((1, 2, 2, 3, 4))
        self._long: set[int] = set()
        """Clients whose generations must last until a fault finds its phase."""
        self._endless: set[int] = set()
        """Clients that leave: theirs would run on and on."""
        self._whole = {n for n in range(self._arrivals) if Random(f"{seed} {n}").random() < 0.3}
        """Clients that want their answer in one piece, and ask again when their line breaks."""
        self._arrived: dict[int, Client] = {}
        self._planned = self._plan()
        for number in range(self._arrivals):
            self.world.clock.after(1.0 + random.random(), self._arrive, number)
        self.world.clock.after(1.0, self._watch)
        self._plans = Plans(self.world, Random(f"{seed} plans"), self.oracle)
        self._change_plans()
        if settings.cluster.spares:
            self.world.clock.after(1.5 + 3.0 * self._of_spares.random(), self._strike_spare)
        self._stranger = Stranger(self.world, random, self.oracle.fail)
        self.world.clock.after(0.2, self._strange)

    def _of_its_kind(self, settings: SimulationSettings) -> SimulationSettings:
        """With what schedules of its kind have otherwise."""
        return settings

    def _change_plans(self) -> None:
        """In every third schedule some plans come, one in the middle of another's being carried
        out or just before the controller dies."""
        random = self._plans.random
        if random.random() >= 1 / 3:
            return
        at_s = 1.0 + 3.0 * random.random()
        for _ in range(random.choice((1, 1, 2, 3))):
            self.world.clock.after(at_s, self._plans.give)
            if random.random() < 0.2:
                self.world.clock.after(at_s + 0.6 * random.random(), self._crash_in_mid_change)
            at_s += random.choice((0.05, 0.3, 0.8, 2.0)) * random.random()

    def _crash_in_mid_change(self) -> None:
        if self.world.controller.alive:
            self.disruptions += 1
            self.world.crash_controller(0.2 + self._plans.random.random())

    def _strike_spare(self) -> None:
        """A spare is given notice or dies, and perhaps a node that serves dies just behind it."""
        random, controller = self._of_spares, self.world.controller
        if not controller.alive or controller.frozen:
            return
        for spare in controller.cluster.view.spares():
            notice_s = random.choice((0.0, 1.5, 4.0))
            self.oracle.note("fault", "spare", spare.node_id, notice_s)
            if notice_s and self._lives(spare.node_id):
                self.world.provider.notice(spare.node_id, notice_s, taken=random.random() < 0.6)
            else:
                with suppress(FailedPrecondition):  # dead already, and not missed yet
                    self.world.provider.terminate(spare.node_id)
            if random.random() < 0.6:
                self.world.clock.after(0.3 * random.random(), self._kill_one)

    def _kill_one(self) -> None:
        controller = self.world.controller
        running = controller.cluster.view.running() if controller.alive else ()
        seated = [stage.node_id for _, pipeline in running for stage in pipeline.stages]
        living = [node_id for node_id in seated if self._lives(node_id)]
        if living:
            self.disruptions += 1
            self.world.provider.terminate(self._of_spares.choice(living))

    def _lives(self, node_id: str) -> bool:
        process = self.world.provider.nodes.get(node_id)
        return process is not None and process.alive

    def _plan(self) -> list[Planned]:
        random = self.random
        planned = []
        for _ in range(random.choice((0, 1, 2, 2, 3, 4))):
            phase = random.choice(PHASES + RARE)
            row = random.choice(SCARCE.get(phase, ROWS) if random.random() < 0.45 else ROWS)
            client = random.randrange(self._arrivals)
            start_s = 1.0 if phase in EARLY else 1.2 + 1.5 * random.random()
            if phase in CAUSES:
                cause_s = 1.2 + random.random()
                cause = random.choice(CAUSES[phase])
                planned.append(Planned(cause, "", client, cause_s, cause_s))
            if phase in CAUSES or row in MESSAGE_FAULTS:
                self._long.add(client)
            faults = [name for name, (of, _) in FAULTS.items() if of == row]
            if row == "break" and phase == "finished":
                faults = ["journal_break", "cut_controller"]
            elif row == "break" and phase == "attaching":
                faults = ["line_break", "cut_router"]
            fault = random.choice(faults)
            if fault == "leave":
                self._endless.add(client)
            planned.append(Planned(fault, phase, client, start_s, FAULTS_CEASE_S - 2.0))
        return planned

    def _arrive(self, number: int) -> None:
        random = self.random
        max_tokens = 150 if number in self._long else random.choice((4, 40, 80))
        max_tokens = ENDLESS if number in self._endless else max_tokens
        model = self._models.choice(self.world.settings.goals.deployed).model
        prompt = [random.randrange(1000) for _ in range(random.choice(PROMPTS))]
        request = GenerationRequest(
            f"g{number}",
            model,
            self._begun_alike(prompt),
            Sampling(
                max_tokens=max_tokens,
                seed=random.randrange(1000),
                eos_token_ids=(2,),
                ignore_eos=max_tokens > 100 or random.random() < 0.2,
            ),
            choices=random.choice((1, 1, 1, 2)),
            stop_strings=(
                random.choice(STOPS) if random.random() < 0.3 and max_tokens <= 100 else ()
            ),
            ask_digest=f"d{number}" if number in self._whole else "",
            cache_salt=self._alike.choice(("", "", "", "a")),
        )
        self._arrived[number] = self._ask(request)

    def _ask(self, request: GenerationRequest) -> Client:
        return self.world.ask(request)

    def _begun_alike(self, prompt: list[int]) -> tuple[int, ...]:
        """Most prompts have a beginning in common, some of them but for the first id; some are no
        more than that, and fill their blocks."""
        if self._alike.random() < 0.7:
            end = self._alike.choice((16, 32, 40))
            prompt[:end] = range(len(prompt[:end]))
            if self._alike.random() < 0.3:
                prompt[0] = 7
            if end == 32:
                del prompt[end:]
        return tuple(prompt)

    def _strange(self) -> None:
        self._stranger.turn()
        self.oracle.check_status()
        if self.world.clock.now_s < FAULTS_CEASE_S:
            self.world.clock.after(0.3 + 0.3 * self.random.random(), self._strange)

    def _watch(self) -> None:
        now_s, world = self.world.clock.now_s, self.world
        self.oracle.check_cluster()
        for planned in list(self._planned):
            client = self._arrived.get(planned.client)
            if now_s < planned.not_before_s or client is None:
                continue
            if phase_of(self.world, client) == planned.phase or now_s >= planned.by_s:
                self._planned.remove(planned)
                self._inject(planned.fault, client)
        if now_s >= FAULTS_CEASE_S:
            self._cease()
        else:
            world.clock.after(0.002 if self._planned else 0.05, self._watch)

    def _struck(self, kind: str) -> None:
        """A message went astray."""
        for client in self.world.clients:
            self.hits[kind, phase_of(self.world, client)] += 1

    def _inject(self, fault: str, client: Client) -> None:
        row = FAULTS[fault][0]
        phase = phase_of(self.world, client)
        self.oracle.note("fault", fault, client.name, phase)
        if FAULTS[fault][1](self._faults, client):
            self.hits[row, phase] += 1
            self.disruptions += row not in MESSAGE_FAULTS

    def _cease(self) -> None:
        world = self.world
        world.network.trouble = Trouble()
        world.network.cut.clear()
        world.environment.failing.clear()
        world.environment.settings = replace(
            world.settings, launch_fails=0.0, launch_lost=0.0, plan_fails=0.0, load_fails=0.0
        )
        if world.controller.frozen:
            world.controller.thaw()
        if not world.controller.alive:
            world.crash_controller(0.0)

    # The whole

    def run(self) -> None:
        """Raises Violation."""
        judged(self._run)

    def _run(self) -> None:
        world, oracle = self.world, self.oracle

        def done() -> bool:
            if self._planned or len(world.clients) < self._arrivals:
                return False
            return all(c.ended or c.left_s is not None for c in world.clients)

        world.clock.run(END_S, done)
        self._planned.clear()
        self._cease()
        oracle.check_ended()
        world.clock.run(world.clock.now_s + 9.0)
        self._cease()
        if self._faults.for_good:  # a node that is to load may be silent for so long
            silent_s = world.settings.cluster.empty_node_lost_s
            world.clock.run(world.clock.now_s + silent_s, oracle.serves)
        if oracle.plans:
            world.clock.run(world.clock.now_s + CARRIED_OUT_S, oracle.carried_out)
            oracle.check_cluster()
            if not world.settings.other_class:
                oracle.check_plan()
        if world.settings.cluster.spares and not world.settings.other_class:
            world.clock.run(world.clock.now_s + SPARED_S, oracle.has_spares)
            oracle.check_spares()
        oracle.check_launches()
        oracle.check_one_sequence()
        oracle.check_moves(self.disruptions + oracle.silent_stages)
        if not world.settings.other_class:  # stages that differ form no pipeline, for good
            oracle.check_serves()
        oracle.check_rest()


def table(hits: Counter[tuple[str, str]]) -> str:
    """Fault × phase: how often each fault struck a generation in each phase."""
    lines = [f"{'':10}" + "".join(f"{phase:>11}" for phase in PHASES)]
    for row in ROWS:
        lines.append(f"{row:10}" + "".join(f"{hits[row, phase]:11}" for phase in PHASES))
    return "\n".join(lines)


if __name__ == "__main__":
    program(Schedule, lambda schedule: schedule.hits, table)
