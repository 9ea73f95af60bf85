from __future__ import annotations

from services.common.machine import DECLARABLE, FACTS, NOTHING_KNOWN, Device, MachineFacts, Source

FOUND = MachineFacts(cores=2.0, memory_bytes=100, devices=(Device("L4", 7),))


def test_each_fact_has_a_source() -> None:
    facts = FOUND.declare(MachineFacts(memory_bytes=50, spot=False))
    assert {name: facts.source(name) for name in ("cores", "memory_bytes", "spot", "zone")} == {
        "cores": Source.FOUND,
        "memory_bytes": Source.DECLARED,
        "spot": Source.DECLARED,
        "zone": Source.UNKNOWN,
    }
    assert {NOTHING_KNOWN.source(name) for name in FACTS} == {Source.UNKNOWN}


def test_what_is_declared_stands_in_the_place_of_what_was_found() -> None:
    facts = FOUND.declare(MachineFacts(memory_bytes=50, pool="a"))
    assert (facts.memory_bytes, facts.pool, facts.cores) == (50, "a", 2.0)
    assert facts.declared == ("memory_bytes", "pool")
    assert facts.declare(MachineFacts(spot=True)).declared == ("memory_bytes", "pool", "spot")


def test_without_what_was_declared_it_is_not_known() -> None:
    facts = FOUND.declare(MachineFacts(memory_bytes=50, pool="a")).found_alone()
    assert facts == MachineFacts(cores=2.0, devices=(Device("L4", 7),))
    assert FOUND.found_alone() == FOUND


def test_what_several_find_comes_together() -> None:
    assert FOUND.found_too(MachineFacts(network_gbps=10.0)) == MachineFacts(
        cores=2.0, memory_bytes=100, devices=(Device("L4", 7),), network_gbps=10.0
    )


def test_what_may_be_declared_are_facts() -> None:
    assert set(DECLARABLE) < set(FACTS)
