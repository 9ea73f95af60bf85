"""What this process finds out about its machine, and what that means for its node.

A finder looks at one thing. Where it cannot look, or sees nothing, the fact stays unknown.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from services.common.host import ROOT, usable_cores, usable_memory_bytes
from services.common.machine import Device, MachineFacts
from services.common.nodes import MOST_DEVICES, NodeShape
from services.engine.settings import EngineSettings

_log = logging.getLogger(__name__)

Finder = Callable[[], MachineFacts]

_CONTAINER = re.compile(r"/containers/([0-9a-f]{64})/hostname /etc/hostname ")
"""Docker mounts this file into each container, from a place of the container's own."""
DRIVER = "dev/nvidiactl"
"""There wherever a process may use a CUDA device of Linux."""
CPU = "cpu"
MOST_NATIVE = 4
"""Ranks that the native backend has a stage run on, on a CPU."""
_CATALOGUE = (
    (r"\bT4\b", 0, "t4"),
    (r"\bV100\b", 24, "v100-32"),
    (r"\bV100\b", 0, "v100"),
    (r"\bA10G\b", 0, "a10g"),
    (r"\bL4\b", 0, "l4"),
    (r"\bL40S\b", 0, "l40s"),
    (r"\bA40\b", 0, "a40"),
    (r"\bA100\b", 60, "a100-80"),
    (r"\bA100\b", 0, "a100-40"),
    (r"\bH100\b", 0, "h100"),
    (r"\bH200\b", 0, "h200"),
    (r"\bB200\b", 0, "b200"),
)
"""What a driver's name and the least GB of its memory are in the placement catalogue."""


def processor(root: Path = ROOT) -> MachineFacts:
    """Cores and memory."""
    return MachineFacts(cores=usable_cores(root), memory_bytes=usable_memory_bytes(root))


def network(root: Path = ROOT) -> MachineFacts:
    """The rate of the fastest interface that is up, of those that have a device: others say
    whatever their driver was written to say."""
    rates = []
    for interface in (root / "sys/class/net").glob("*"):
        try:
            up = (interface / "operstate").read_text().strip() == "up"
            megabits = int((interface / "speed").read_text())
        except (OSError, ValueError):
            continue
        if up and megabits > 0 and (interface / "device").exists():
            rates.append(megabits / 1000)
    return MachineFacts(network_gbps=max(rates, default=None))


def cuda(root: Path = ROOT) -> MachineFacts:
    """The devices that torch may use."""
    if not (root / DRIVER).exists():
        return MachineFacts(devices=())
    import torch

    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return MachineFacts(devices=tuple(Device(one.name, one.total_memory) for one in found))


def container(root: Path = ROOT) -> MachineFacts:
    """Which of Docker's containers this is, if it is one."""
    try:
        found = _CONTAINER.search((root / "proc/self/mountinfo").read_text())
    except OSError:
        return MachineFacts()
    return MachineFacts(instance_id=found.group(1) if found else None)


FINDERS: Mapping[str, Finder] = {
    "processor": processor,
    "network": network,
    "container": container,
    "cuda": cuda,
}


def find(finders: Mapping[str, Finder] = FINDERS) -> MachineFacts:
    """What all of them find; one that fails finds nothing. It may take seconds."""
    facts = MachineFacts()
    for name, finder in finders.items():
        try:
            facts = facts.found_too(finder())
        except (ImportError, OSError, RuntimeError) as error:
            _log.warning("facts not found", extra={"finder": name, "why": str(error)})
    return facts


def told(settings: EngineSettings, found: MachineFacts) -> MachineFacts:
    """With what `shunt node` found beside it, and what the provider that started the process
    declares."""
    if settings.found is not None:
        found = found.found_too(MachineFacts(**settings.found.model_dump()))
    said = settings.declared
    if said is None:
        return found
    return found.declare(
        MachineFacts(
            instance_type=said.instance_type,
            pool=said.pool,
            spot=said.spot,
            relative_speed=settings.relative_speed,
            memory_bytes=settings.memory_bytes,
        )
    )


def shape(settings: EngineSettings, machine: MachineFacts) -> NodeShape:
    """What the node is able to do: with no more memory than there is where it computes, and as the
    device that was found there, unless the settings name another type."""
    devices, ranks = _devices(settings, machine), _ranks(settings, machine)
    if settings.device == CPU:
        there_bytes = machine.memory_bytes
    else:  # each rank has the same share of a stage
        smallest = min((one.memory_bytes for one in devices[:ranks]), default=None)
        there_bytes = None if smallest is None else ranks * smallest
    return NodeShape(
        settings.memory_bytes if there_bytes is None else min(settings.memory_bytes, there_bytes),
        settings.relative_speed,
        settings.device_type or (_catalogued(devices[0]) if devices else CPU),
        ranks,
        settings.backend,
    )


def _ranks(settings: EngineSettings, machine: MachineFacts) -> int:
    """That may share a stage: as many as are set, or as there is something for to compute on, of
    those that the backend runs."""
    on_cpu, devices = settings.device == CPU, len(_devices(settings, machine))
    there = machine.cores if on_cpu else devices
    most = MOST_DEVICES if settings.backend == "vllm" else MOST_NATIVE if on_cpu else 1
    return max(1, min(settings.ranks or int(there or 1), most, devices or most))


def _devices(settings: EngineSettings, machine: MachineFacts) -> tuple[Device, ...]:
    """Those that compute, one a rank, where they were found; none on a CPU."""
    if settings.device == CPU or machine.devices is None:
        return ()
    return machine.devices[int(settings.device.partition(":")[2] or 0) :]


def _catalogued(device: Device) -> str:
    """Its type in the placement catalogue; the host's where that has none."""
    for pattern, least_gb, name in _CATALOGUE:
        if re.search(pattern, device.name) and device.memory_bytes >= least_gb * 1e9:
            return name
    return CPU
