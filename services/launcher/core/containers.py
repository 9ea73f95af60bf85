"""Containers as Docker describes them, and whose they are: by their labels, and by nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MESH_LABEL = "shuntserve.mesh"
NODE_LABEL = "shuntserve.node"
OFFER_LABEL = "shuntserve.offer"
DEVICE_LABEL = "shuntserve.device"
PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"
ONE_OFF_LABEL = "com.docker.compose.oneoff"
OUT_OF_MEMORY = "it was out of memory"
_RUNNING = frozenset(("running", "paused", "restarting"))
_LAST_WORDS_CHARS = 200
_BY_SIGNAL = 128
"""Exit statuses beyond are signals."""


@dataclass(frozen=True, slots=True)
class Container:
    """A node's container."""

    container_id: str
    node_id: str
    offer_id: str
    device: str = ""
    """The GPU that is its own; empty where it has none."""


def container_of(container_id: str, labels: Mapping[str, str], mesh: str) -> Container | None:
    """None for a container that is no node of this mesh."""
    node_id = labels.get(NODE_LABEL, "")
    if labels.get(MESH_LABEL) != mesh or not node_id:
        return None
    offer_id, device = labels.get(OFFER_LABEL, ""), labels.get(DEVICE_LABEL, "")
    return Container(container_id, node_id, offer_id, device)


def runs(state: str) -> bool:
    """By the word that Docker has for a container's state."""
    return state in _RUNNING


def why_ended(state: Mapping[str, Any], said: str) -> str:
    """What to tell of an end, from the container's state and the last it said; what an engine logs
    is no last word."""
    code = int(state.get("ExitCode") or 0)
    if state.get("OOMKilled"):
        return f"exit status {code}: {OUT_OF_MEMORY}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines and not lines[-1].startswith("{") else ""
    failed = 0 < code < _BY_SIGNAL  # what was killed did not say why
    why = str(state.get("Error") or "") or (last if failed else "")
    return f"exit status {code}" + (f": {why[:_LAST_WORDS_CHARS]}" if why else "")
