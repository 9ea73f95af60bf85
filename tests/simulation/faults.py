"""What can happen to a mesh: each fault strikes around one client's generation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from phases import following_of, head_of

from simulator.processes.client import Client
from simulator.processes.engine import SimulatedEngine
from simulator.processes.router import SimulatedRouter
from simulator.world import World

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


class Faults:
    """Strikes one world; each fault tells whether it found something to strike."""

    def __init__(self, world: World, random: Random) -> None:
        self.world = world
        self.random = random
        self.for_good = False
        """Some process was stopped and goes on no more."""

    def _victim(self, client: Client, stage: bool) -> SimulatedEngine | None:
        head = head_of(self.world, client)
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
        self.world.provider.restart(victim.node_id) if restart else victim.kill()
        return True

    def kill_in_scarcity(self, client: Client, stage: bool) -> bool:
        """For a while no node that is to replace it starts, or none loads its stage."""
        world = self.world
        world.environment.failing.add(self.random.choice(("launch", "load")))
        world.clock.after(0.5 + 2.0 * self.random.random(), world.environment.failing.clear)
        return self.kill(client, stage)

    def freeze(self, client: Client, stage: bool) -> bool:
        victim = self._victim(client, stage)
        if victim is None or victim.frozen:
            return False
        victim.freeze()
        if self.random.random() < 0.7:
            self.world.clock.after(0.2 + 3.0 * self.random.random(), victim.thaw)
        else:
            self.for_good = True
        return True

    def wedge(self, client: Client) -> bool:
        victim = self._victim(client, self.random.random() < 0.5)
        if victim is None:
            return False
        victim.wedged = True
        self.world.clock.after(0.5 + 4.0 * self.random.random(), self._unwedge, victim)
        return True

    def _unwedge(self, victim: SimulatedEngine) -> None:
        victim.wedged = False

    def freeze_controller(self, client: Client) -> bool:
        controller = self.world.controller
        controller.freeze()
        self.world.clock.after(0.2 + 4.0 * self.random.random(), controller.thaw)
        return True

    def notice(self, client: Client, notice_s: float) -> bool:
        """Of a market, which takes the node away behind it, or does not in the end."""
        victim = self._victim(client, self.random.random() < 0.5)
        if victim is None or not victim.alive:
            return False
        taken = self.random.random() < 0.6
        self.world.provider.notice(victim.node_id, notice_s, taken=taken)
        return True

    def tell_to_stop(self, client: Client) -> bool:
        """SIGTERM; what is told so ends in any case."""
        victim = self._victim(client, self.random.random() < 0.5)
        if victim is None or victim.frozen or victim.place is None:
            return False
        victim.depart(self.random.choice((0.5, 2.0, 5.0)))
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
        controller.cluster.interrupt(victim.node_id, 0.0, True, now_s)
        controller.stir()
        return True

    def crash_controller(self, client: Client) -> bool:
        if not self.world.controller.alive:
            return False
        self.world.crash_controller(0.2 + 3.0 * self.random.random())
        return True

    def change_the_mesh(self, client: Client) -> bool:
        """The controller starts again with other settings, for which its plan is of no use."""
        environment = self.world.environment
        cluster = self.world.settings.cluster
        cluster = replace(cluster, planner=cluster.planner + "'")
        environment.settings = replace(environment.settings, cluster=cluster)
        return self.crash_controller(client)

    def crash_router(self, client: Client) -> bool:
        following = following_of(self.world, client)
        routers = [r for r in self.world.routers if r.alive]
        router: SimulatedRouter = (
            following.router if following is not None else self.random.choice(routers)
        )
        if not router.alive or len(routers) < 2:
            return False
        client.away_s = self.random.choice((0.05, 0.5, 3.0))
        self.world.crash_router(router, 1.0)
        return True

    def line_break(self, client: Client) -> bool:
        following, head = following_of(self.world, client), head_of(self.world, client)
        if following is None or head is None:
            return False
        for stream in list(following.router.streams):
            if stream.server is head:
                stream.break_line()
        return True

    def journal_break(self, client: Client) -> bool:
        head = head_of(self.world, client)
        if head is None or head._journal is None:
            return False
        head._journal.break_line()
        return True

    def cut(self, client: Client, controller: bool) -> bool:
        following, head = following_of(self.world, client), head_of(self.world, client)
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
            self.world.ask(client.request, client.first or client)
            return True
        client.away_s = away_s
        client.hang_up()
        return True

    def stop_reading(self, client: Client) -> bool:
        """It takes nothing for a while."""
        if client.frozen or client.ended:
            return False
        client.freeze()
        self.world.clock.after(0.3 + 3.0 * self.random.random(), client.thaw)
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


FAULTS: dict[str, tuple[str, Callable[[Faults, Client], bool]]] = {
    "kill_head": ("kill", lambda s, c: s.kill(c, False)),
    "kill_stage": ("kill", lambda s, c: s.kill(c, True)),
    "kill_in_scarcity": ("kill", lambda s, c: s.kill_in_scarcity(c, s.random.random() < 0.5)),
    "order_kill": ("kill", Faults.order_kill),
    "freeze_head": ("stop", lambda s, c: s.freeze(c, False)),
    "freeze_stage": ("stop", lambda s, c: s.freeze(c, True)),
    "wedge": ("stop", Faults.wedge),
    "freeze_controller": ("stop", Faults.freeze_controller),
    "notice": ("notice", lambda s, c: s.notice(c, s.random.choice((0.3, 1.5, 4.0)))),
    "long_notice": ("notice", lambda s, c: s.notice(c, 4.0)),
    "told_to_stop": ("notice", Faults.tell_to_stop),
    "restart_node": ("restart", lambda s, c: s.kill(c, False, restart=True)),
    "crash_controller": ("restart", Faults.crash_controller),
    "change_the_mesh": ("restart", Faults.change_the_mesh),
    "crash_router": ("restart", Faults.crash_router),
    "line_break": ("break", Faults.line_break),
    "journal_break": ("break", Faults.journal_break),
    "cut_router": ("break", lambda s, c: s.cut(c, False)),
    "cut_controller": ("break", lambda s, c: s.cut(c, True)),
    "hang_up": ("client", lambda s, c: s.hang_up(c, s.random.choice((0.01, 0.3, 3.0)))),
    "absence": ("client", lambda s, c: s.hang_up(c, 3.0)),
    "stop_reading": ("client", Faults.stop_reading),
    "leave": ("client", Faults.leave),
    "cancel": ("client", Faults.cancel),
    **{
        fault: (fault, lambda s, c, fault=fault: s.trouble(c, fault))  # type: ignore[misc]
        for fault in MESSAGE_FAULTS
    },
}
