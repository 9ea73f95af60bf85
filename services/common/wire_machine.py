"""What a node's machine is, as a message and back."""

from __future__ import annotations

from shuntserve.common.v1 import common_pb2

from services.common.errors import InvalidArgument
from services.common.machine import DECLARABLE, FACTS, Device, MachineFacts
from services.common.speeds import MAX_SPEED

MAX_NAME_CHARS = 128
MAX_DEVICES = 64
MAX_CORES = 1e6
MAX_NETWORK_GBPS = 1e6
MAX_MEMORY_BYTES = 1 << 62
_NAMES = ("instance_id", "instance_type", "zone", "pool")
_MOST = {"relative_speed": MAX_SPEED, "cores": MAX_CORES, "network_gbps": MAX_NETWORK_GBPS}


def machine_to(facts: MachineFacts) -> common_pb2.MachineFacts:
    message = common_pb2.MachineFacts(
        instance_type=facts.instance_type,
        zone=facts.zone,
        pool=facts.pool,
        spot=facts.spot,
        relative_speed=facts.relative_speed,
        cores=facts.cores,
        memory_bytes=facts.memory_bytes,
        network_gbps=facts.network_gbps,
        instance_id=facts.instance_id,
        declared=facts.declared,
    )
    if facts.devices is not None:
        message.devices.devices.extend(
            common_pb2.Device(name=one.name, memory_bytes=one.memory_bytes) for one in facts.devices
        )
        message.devices.SetInParent()
    return message


def machine_from(message: common_pb2.MachineFacts) -> MachineFacts:
    """Raises InvalidArgument, naming the field."""
    told = {name for name in FACTS if message.HasField(name)}  # type: ignore[arg-type]
    for name in message.declared:
        if name not in DECLARABLE or name not in told:
            raise _wrong("declared", f"names of {', '.join(DECLARABLE)} that are told")
    for name in told.intersection(_NAMES):
        _check_name(name, getattr(message, name))
    for name in told.intersection(_MOST):
        if not 0 < getattr(message, name) <= _MOST[name]:  # nor does NaN lie there
            raise _wrong(name, f"lies in (0, {_MOST[name]:g}]")
    if "memory_bytes" in told:
        _check_memory("memory_bytes", message.memory_bytes)
    facts = {name: getattr(message, name) for name in told if name != "devices"}
    return MachineFacts(
        **facts,
        devices=_devices_from(message.devices) if "devices" in told else None,
        declared=tuple(sorted(set(message.declared))),
    )


def _devices_from(message: common_pb2.Devices) -> tuple[Device, ...]:
    if len(message.devices) > MAX_DEVICES:
        raise _wrong("devices", f"are at most {MAX_DEVICES}")
    for one in message.devices:
        _check_name("devices.name", one.name)
        _check_memory("devices.memory_bytes", one.memory_bytes)
    return tuple(Device(one.name, one.memory_bytes) for one in message.devices)


def _check_name(field: str, text: str) -> None:
    if not 1 <= len(text) <= MAX_NAME_CHARS or not text.isprintable():
        raise _wrong(field, f"has 1 to {MAX_NAME_CHARS} characters")


def _check_memory(field: str, size_bytes: int) -> None:
    if not 0 < size_bytes <= MAX_MEMORY_BYTES:
        raise _wrong(field, f"lies in [1, {MAX_MEMORY_BYTES}]")


def _wrong(field: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"machine.{field} {reason}", field=f"machine.{field}")
