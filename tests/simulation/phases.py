"""Where a client's generation stands, as the faults are steered at it."""

from __future__ import annotations

from services.engine.core.held import Life
from simulator.processes.client import Client
from simulator.processes.engine import SimulatedEngine
from simulator.processes.router import Following
from simulator.world import World

PHASES = ("queued", "prefill", "decode", "sealing", "granting", "attaching", "finished")


def following_of(world: World, client: Client) -> Following | None:
    """The router's side of a client's stream."""
    name = client.request.generation_id
    for router in world.routers:
        for following in router.followings:
            if following.follower.request.generation_id == name:
                return following
    return None


def head_of(world: World, client: Client) -> SimulatedEngine | None:
    """The head a client's reader follows, or followed last."""
    following = following_of(world, client)
    if following is not None and following.follower.route is not None:
        return world.engine(following.follower.route.incarnation)
    return world.engine(client.last_head) if client.last_head else None


def phase_of(world: World, client: Client) -> str:
    """Where a client's generation stands; '' in between."""
    if client.ended:
        return "finished" if client.error is None else ""
    head = head_of(world, client)
    held = head.core._held.get(client.request.generation_id) if head is not None else None
    ending = held is not None and held.life in (Life.SEALING, Life.SEALED)
    if ending and not held.journal_done:
        return "sealing"
    following = following_of(world, client)
    if following is None:
        return ""
    if following.follower._asking:
        return "granting"
    if following.follower._open and not following.accepted:
        return "attaching"
    return held.phase.value if held is not None and held.life is Life.LIVE else ""
