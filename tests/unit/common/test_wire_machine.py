from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shuntserve.common.v1 import common_pb2

from services.common.errors import InvalidArgument
from services.common.machine import DECLARABLE, NOTHING_KNOWN, Device, MachineFacts
from services.common.wire_machine import (
    MAX_CORES,
    MAX_DEVICES,
    MAX_MEMORY_BYTES,
    machine_from,
    machine_to,
)

NAMES = st.text("ab-1 ", min_size=1, max_size=128)
RATES = st.floats(0, 1e6, exclude_min=True)
SIZES = st.integers(1, MAX_MEMORY_BYTES)
FACTS = st.builds(
    MachineFacts,
    instance_type=st.none() | NAMES,
    zone=st.none() | NAMES,
    pool=st.none() | NAMES,
    spot=st.none() | st.booleans(),
    relative_speed=st.none() | RATES,
    cores=st.none() | RATES,
    memory_bytes=st.none() | SIZES,
    devices=st.none() | st.lists(st.builds(Device, NAMES, SIZES), max_size=3).map(tuple),
    network_gbps=st.none() | RATES,
    instance_id=st.none() | NAMES,
)


@given(FACTS, st.sets(st.sampled_from(DECLARABLE)))
def test_facts_come_back_as_they_were(facts: MachineFacts, declared: set[str]) -> None:
    known = {name: value for name, value in facts.known().items() if name in declared}
    told = facts.declare(MachineFacts(**known))
    assert machine_from(machine_to(told)) == told


def test_none_found_is_another_thing_than_not_looked_for() -> None:
    assert machine_from(common_pb2.MachineFacts()) == NOTHING_KNOWN
    assert machine_from(machine_to(MachineFacts(devices=()))).devices == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("instance_id", "i-0\n"),
        ("instance_type", ""),
        ("zone", "z" * 129),
        ("pool", "a\nb"),
        ("relative_speed", 0.0),
        ("relative_speed", float("nan")),
        ("cores", 2 * MAX_CORES),
        ("network_gbps", float("inf")),
        ("memory_bytes", 0),
        ("memory_bytes", MAX_MEMORY_BYTES + 1),
    ],
)
def test_a_fact_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    message = common_pb2.MachineFacts(**{field: value})
    with pytest.raises(InvalidArgument) as refused:
        machine_from(message)
    assert refused.value.field == f"machine.{field}"


@pytest.mark.parametrize(
    ("devices", "field"),
    [
        ([("", 1)], "machine.devices.name"),
        ([("L4", 0)], "machine.devices.memory_bytes"),
        ([("L4", 1)] * (MAX_DEVICES + 1), "machine.devices"),
    ],
)
def test_a_device_that_cannot_be_is_refused_by_name(
    devices: list[tuple[str, int]], field: str
) -> None:
    message = common_pb2.MachineFacts()
    message.devices.devices.extend(common_pb2.Device(name=n, memory_bytes=m) for n, m in devices)
    with pytest.raises(InvalidArgument) as refused:
        machine_from(message)
    assert refused.value.field == field


@pytest.mark.parametrize("name", ["cores", "speed", "pool"])
def test_only_what_is_told_and_may_be_declared_is(name: str) -> None:
    message = common_pb2.MachineFacts(cores=2.0, zone="z", declared=[name])
    with pytest.raises(InvalidArgument) as refused:
        machine_from(message)
    assert refused.value.field == "machine.declared"
