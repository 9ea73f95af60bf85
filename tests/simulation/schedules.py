"""Random fault schedules: a seed decides everything, faults are steered at phases of a generation.

Run as a program with seeds it prints the table fault × phase, or the first violation.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from oracles import Oracle
from strangers import Stranger

from services.common.generation import GenerationRequest, Sampling
from services.engine.held import Life
from simulator.engine import Engine
from simulator.network import Trouble
from simulator.router import Client, Following, Router
from simulator.world import MODEL, World, WorldSettings

PHASES = ("queued", "prefill", "decode", "sealing", "granting", "attaching", "finished")
RARE = ("queued", "sealing", "granting", "attaching", "finished")
"""Phases that faults are steered at twice as often: they pass in no time."""
SCARCE = {
    "granting": ("notice", "kill"),
    "finished": ("break", "stop", "client"),
    "sealing": ("notice", "client"),
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
ROWS = (
    "kill",
    "stop",
    "notice",
    "restart",
    "break",
    "client",
    "lost",
    "late",
    "doubled",
    "half_done",
)
MESSAGE_FAULTS = ("lost", "late", "doubled", "half_done")
FAULTS_CEASE_S = 7.0
END_S = 60.0


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

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random = Random(seed)
        self.exact = seed % 2 == 0
        self.oracle = Oracle(exact=self.exact)
        settings = WorldSettings(
            exits_seen=random.random() < 0.5,
            launch_fails=0.2 if random.random() < 0.2 else 0.0,
            plan_fails=0.5 if random.random() < 0.1 else 0.0,
            load_fails=0.4 if random.random() < 0.1 else 0.0,
            other_class=0.2 if random.random() < 0.05 else 0.0,
        )
        if random.random() < 0.1:  # nobody launches nodes: they come by themselves
            cluster = replace(settings.cluster, expected_nodes=5)
            settings = replace(settings, cluster=cluster)
        self.world = World(random, settings, self.oracle, exact=self.exact)
        self.oracle.world = self.world
        self.world.network.struck = self._struck
        self.hits: Counter[tuple[str, str]] = Counter()
        self.disruptions = 0
        self._arrivals = random.choice((1, 2, 2, 3, 4))
        self._long: set[int] = set()
        """Clients whose generations must last until a fault finds its phase."""
        self._endless: set[int] = set()
        """Clients that leave: theirs would run on and on."""
        self._arrived: dict[int, Client] = {}
        self._planned = self._plan()
        for number in range(self._arrivals):
            self.world.clock.after(1.0 + random.random(), self._arrive, number)
        self.world.clock.after(1.0, self._watch)
        self._stranger = Stranger(self.world, random, self.oracle.fail)
        self.world.clock.after(0.2, self._strange)

    def _plan(self) -> list[Planned]:
        random = self.random
        planned = []
        for _ in range(random.choice((0, 1, 2, 2, 3, 4))):
            phase = random.choice(PHASES + RARE)
            row = random.choice(SCARCE.get(phase, ROWS) if random.random() < 0.25 else ROWS)
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
        max_tokens = 600 if number in self._endless else max_tokens
        request = GenerationRequest(
            f"g{number}",
            MODEL,
            tuple(random.randrange(1000) for _ in range(3)),
            Sampling(
                max_tokens=max_tokens,
                seed=random.randrange(1000),
                eos_token_ids=(2,),
                ignore_eos=max_tokens > 100 or random.random() < 0.2,
            ),
            choices=random.choice((1, 1, 1, 2)),
            stop_strings=("107",) if random.random() < 0.3 and max_tokens <= 100 else (),
        )
        self._arrived[number] = client = Client(self.world, request)
        self.world.clients.append(client)

    def _strange(self) -> None:
        self._stranger.turn()
        if self.world.clock.now_s < FAULTS_CEASE_S:
            self.world.clock.after(0.3 + 0.3 * self.random.random(), self._strange)

    # Phases

    def following(self, client: Client) -> Following | None:
        """The router's side of a client's stream."""
        name = client.request.generation_id
        for router in self.world.routers:
            for following in router.followings:
                if following.follower.request.generation_id == name:
                    return following
        return None

    def head(self, client: Client) -> Engine | None:
        """The head a client's reader follows, or followed last."""
        following = self.following(client)
        if following is not None and following.follower.route is not None:
            return self.world.engine(following.follower.route.incarnation)
        return self.world.engine(client.last_head) if client.last_head else None

    def phase(self, client: Client) -> str:
        """Where a client's generation stands; '' in between."""
        if client.ended:
            return "finished" if client.error is None else ""
        head = self.head(client)
        held = head.core._held.get(client.request.generation_id) if head is not None else None
        ending = held is not None and held.life in (Life.SEALING, Life.SEALED)
        if ending and not held.journal_done:
            return "sealing"
        following = self.following(client)
        if following is None:
            return ""
        if following.follower._asking:
            return "granting"
        if following.follower._open and not following.accepted:
            return "attaching"
        return held.phase.value if held is not None and held.life is Life.LIVE else ""

    def _watch(self) -> None:
        now_s, world = self.world.clock.now_s, self.world
        for planned in list(self._planned):
            client = self._arrived.get(planned.client)
            if now_s < planned.not_before_s or client is None:
                continue
            if self.phase(client) == planned.phase or now_s >= planned.by_s:
                self._planned.remove(planned)
                self._inject(planned.fault, client)
        if now_s >= FAULTS_CEASE_S:
            self._cease()
        else:
            world.clock.after(0.002 if self._planned else 0.05, self._watch)

    def _struck(self, kind: str) -> None:
        """A message went astray."""
        for client in self.world.clients:
            self.hits[kind, self.phase(client)] += 1

    def _inject(self, fault: str, client: Client) -> None:
        row = FAULTS[fault][0]
        phase = self.phase(client)
        self.oracle.note("fault", fault, client.name, phase)
        if FAULTS[fault][1](self, client):
            self.hits[row, phase] += 1
            self.disruptions += row not in MESSAGE_FAULTS

    def _cease(self) -> None:
        world = self.world
        world.network.trouble = Trouble()
        world.network.cut.clear()
        if world.controller.frozen:
            world.controller.thaw()
        if not world.controller.alive:
            world.crash_controller(0.0)

    # Faults

    def _victim(self, client: Client, stage: bool) -> Engine | None:
        head = self.head(client)
        if head is None or not head.alive or head.place is None:
            heads = [e for e in self.world.engines if e.place is not None]
            head = self.random.choice(heads) if heads else None
        if head is None or not stage or head.place is None:
            return head
        peers = [e for e in self.world.engines_of(head.place.members) if e is not head and e.alive]
        return self.random.choice(peers) if peers else None

    def kill(self, client: Client, stage: bool, restart: bool = False) -> bool:
        victim = self._victim(client, stage)
        if victim is None:
            return False
        self.world.restart_engine(victim) if restart else self.world.kill_engine(victim)
        return True

    def freeze(self, client: Client, stage: bool) -> bool:
        victim = self._victim(client, stage)
        if victim is None or victim.frozen:
            return False
        victim.freeze()
        if self.random.random() < 0.7:
            self.world.clock.after(0.2 + 3.0 * self.random.random(), victim.thaw)
        return True

    def wedge(self, client: Client) -> bool:
        victim = self._victim(client, self.random.random() < 0.5)
        if victim is None:
            return False
        victim.wedged = True
        self.world.clock.after(0.5 + 4.0 * self.random.random(), self._unwedge, victim)
        return True

    def _unwedge(self, victim: Engine) -> None:
        victim.wedged = False

    def freeze_controller(self, client: Client) -> bool:
        controller = self.world.controller
        controller.freeze()
        self.world.clock.after(0.2 + 2.0 * self.random.random(), controller.thaw)
        return True

    def notice(self, client: Client, notice_s: float) -> bool:
        victim = self._victim(client, self.random.random() < 0.5)
        controller = self.world.controller
        if victim is None or not controller.alive or controller.frozen:
            return False
        now_s = self.world.clock.now_s
        node = controller.cluster._state.nodes.get(victim.node_id)
        if node is None or node.lost:
            return False
        controller.act(controller.cluster.interrupt(victim.node_id, notice_s, False, now_s))
        if self.random.random() < 0.6:
            self.world.clock.after(notice_s, self._kill_if_alive, victim)
        return True

    def order_kill(self, client: Client) -> bool:
        victim = self._victim(client, self.random.random() < 0.5)
        controller = self.world.controller
        if victim is None or not controller.alive or controller.frozen:
            return False
        node = controller.cluster._state.nodes.get(victim.node_id)
        if node is None or node.lost:
            return False
        now_s = self.world.clock.now_s
        controller.act(controller.cluster.interrupt(victim.node_id, 0.0, True, now_s))
        return True

    def _kill_if_alive(self, victim: Engine) -> None:
        if victim.alive:
            self.world.kill_engine(victim)

    def crash_controller(self, client: Client) -> bool:
        if not self.world.controller.alive:
            return False
        self.world.crash_controller(0.2 + 3.0 * self.random.random())
        return True

    def crash_router(self, client: Client) -> bool:
        following = self.following(client)
        routers = [r for r in self.world.routers if r.alive]
        router: Router = following.router if following is not None else self.random.choice(routers)
        if not router.alive or len(routers) < 2:
            return False
        client.away_s = self.random.choice((0.05, 0.5, 3.0))
        self.world.crash_router(router, 1.0)
        return True

    def line_break(self, client: Client) -> bool:
        following, head = self.following(client), self.head(client)
        if following is None or head is None:
            return False
        for stream in list(following.router.streams):
            if stream.server is head:
                stream.break_line()
        return True

    def journal_break(self, client: Client) -> bool:
        head = self.head(client)
        if head is None or head._journal is None:
            return False
        head._journal.break_line()
        return True

    def cut(self, client: Client, controller: bool) -> bool:
        following, head = self.following(client), self.head(client)
        if head is None or (following is None and not controller):
            return False
        other = following.router if following and not controller else self.world.controller
        pair = frozenset((head.name, other.name))
        self.world.network.cut.add(pair)
        self.world.clock.after(0.3 + 2.0 * self.random.random(), self._mend, pair)
        return True

    def _mend(self, pair: frozenset[str]) -> None:
        self.world.network.cut.discard(pair)
        for engine in self.world.engines:
            for stream in list(engine.streams):
                if {stream.client.name, stream.server.name} == pair:
                    stream.break_line()

    def hang_up(self, client: Client, away_s: float) -> bool:
        if client.ended:
            reader = Client(self.world, client.request, client.first or client)
            self.world.clients.append(reader)
            return True
        client.away_s = away_s
        client.hang_up()
        return True

    def leave(self, client: Client) -> bool:
        client.leave()
        return client.left_s is not None

    def cancel(self, client: Client) -> bool:
        if self.random.random() < 0.5:
            self.hang_up(client, 0.3)
        client.cancel()
        return client.cancelled

    def trouble(self, client: Client, kind: str) -> bool:
        setattr(self.world.network.trouble, kind, self.random.choice((1, 2, 5)))
        return False

    # The whole

    def run(self) -> None:
        """Raises Violation."""
        world, oracle = self.world, self.oracle

        def done() -> bool:
            arrived = len(world.clients) >= self._arrivals
            ended = all(c.ended or c.left_s is not None for c in world.clients)
            return arrived and not self._planned and ended

        world.clock.run(END_S, done)
        self._planned.clear()
        self._cease()
        oracle.check_ended()
        world.clock.run(world.clock.now_s + 9.0)
        self._cease()
        oracle.check_one_sequence()
        oracle.check_moves(self.disruptions)
        oracle.check_rest()


FAULTS: dict[str, tuple[str, Callable[[Schedule, Client], bool]]] = {
    "kill_head": ("kill", lambda s, c: s.kill(c, False)),
    "kill_stage": ("kill", lambda s, c: s.kill(c, True)),
    "order_kill": ("kill", Schedule.order_kill),
    "freeze_head": ("stop", lambda s, c: s.freeze(c, False)),
    "freeze_stage": ("stop", lambda s, c: s.freeze(c, True)),
    "wedge": ("stop", Schedule.wedge),
    "freeze_controller": ("stop", Schedule.freeze_controller),
    "notice": ("notice", lambda s, c: s.notice(c, s.random.choice((0.3, 1.5, 4.0)))),
    "long_notice": ("notice", lambda s, c: s.notice(c, 4.0)),
    "restart_node": ("restart", lambda s, c: s.kill(c, False, restart=True)),
    "crash_controller": ("restart", Schedule.crash_controller),
    "crash_router": ("restart", Schedule.crash_router),
    "line_break": ("break", Schedule.line_break),
    "journal_break": ("break", Schedule.journal_break),
    "cut_router": ("break", lambda s, c: s.cut(c, False)),
    "cut_controller": ("break", lambda s, c: s.cut(c, True)),
    "hang_up": ("client", lambda s, c: s.hang_up(c, s.random.choice((0.01, 0.3, 3.0)))),
    "absence": ("client", lambda s, c: s.hang_up(c, 3.0)),
    "leave": ("client", Schedule.leave),
    "cancel": ("client", Schedule.cancel),
    **{
        fault: (fault, lambda s, c, fault=fault: s.trouble(c, fault))  # type: ignore[misc]
        for fault in MESSAGE_FAULTS
    },
}


def main(first: int, count: int, patience: int) -> int:
    """Runs seeds until `patience` of them broke an invariant; returns how many did."""
    hits: Counter[tuple[str, str]] = Counter()
    broken = 0
    for seed in range(first, first + count):
        schedule = Schedule(seed)
        try:
            schedule.run()
        except Exception as error:
            broken += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            print(f"seed {seed}: {type(error).__name__}: {error} ({where.name})")
        hits += schedule.hits
        if broken == patience:
            break
    print(table(hits))
    return broken


def table(hits: Counter[tuple[str, str]]) -> str:
    """Fault × phase: how often each fault struck a generation in each phase."""
    lines = [f"{'':10}" + "".join(f"{phase:>11}" for phase in PHASES)]
    for row in ROWS:
        lines.append(f"{row:10}" + "".join(f"{hits[row, phase]:11}" for phase in PHASES))
    return "\n".join(lines)


if __name__ == "__main__":
    first, count, patience = map(int, sys.argv[1:])
    sys.exit(main(first, count, patience) > 0)
