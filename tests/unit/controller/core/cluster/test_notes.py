"""A note for each entity: what an event writes, and what a restart reads."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import pytest

from services.common.generation import LayerRange
from services.common.machine import NOTHING_KNOWN, Device, MachineFacts
from services.controller.core.cluster.actions import Action, FormPipeline, PersistCluster
from tests.unit.controller.core.cluster.test_deadlines import World
from tests.unit.controller.small_cluster import (
    PATIENT,
    SHAPE,
    Prompt,
    all_of,
    drawer,
    facts,
    loaded,
    one_of,
    planned,
    ready,
)

WHOLE = LayerRange(0, 30)


def serving(pipelines: int) -> Prompt:
    """So many pipelines of a node each."""
    names = [f"node-{number}" for number in range(1, pipelines + 1)]
    settings = replace(
        PATIENT, initial=(SHAPE,) * pipelines, expected_nodes=pipelines, pipelines=pipelines
    )
    cluster = Prompt(settings, drawer(), 0.0, 0.0)
    cluster.start(0.0)
    for name in names:
        cluster.register(facts(name), 0.0)
    cluster.plan_ready(planned(*({name: WHOLE} for name in names)), 0.0)
    for name in names:
        form = one_of(loaded(cluster, name, WHOLE, 0.0), FormPipeline)
        cluster.formed(form.formation_id, 0.0)
    return cluster


def written(actions: list[Action]) -> dict[str, str | None]:
    return {k: v for persist in all_of(actions, PersistCluster) for k, v in persist.notes.items()}


@pytest.mark.parametrize("pipelines", [3, 100])
def test_what_an_event_writes_does_not_grow_with_the_cluster(pipelines: int) -> None:
    cluster = serving(pipelines)
    name = f"node-{pipelines + 1}"
    gone = written(cluster.node_gone("node-2", "i-node-2", "exit", 11.0))
    assert gone.keys() == {"cluster", "node/node-2", f"node/{name}", "pipeline/pipeline-2"}
    assert sum(len(note or "") for note in gone.values()) < 2500
    assert sorted(written(cluster.register(facts(name), 12.0))) == [f"node/{name}"]
    actions = loaded(cluster, name, WHOLE, 13.0)
    assert written(actions).keys() == {f"node/{name}", "pipeline/pipeline-2"}
    formed = written(cluster.formed(one_of(actions, FormPipeline).formation_id, 14.0))
    assert list(formed) == ["pipeline/pipeline-2"]


def test_what_changes_nothing_writes_nothing() -> None:
    cluster = ready(PATIENT)
    cluster.interrupt("node-2", 20.0, False, 1.0)
    assert written(cluster.interrupt("node-2", 30.0, False, 1.5)) == {}


def test_what_is_gone_has_no_note() -> None:
    cluster = ready(PATIENT)
    cluster.node_gone("node-2", "i-node-2", "exit", 0.0)
    assert "node/node-2" in cluster.saved
    assert written(cluster.tick(PATIENT.lost_kept_s))["node/node-2"] is None
    assert "node/node-2" not in cluster.saved


def test_a_restart_writes_only_what_it_changes() -> None:
    cluster = serving(20)
    again = Prompt.recover(cluster.settings, drawer(), cluster.saved, 100.0, 100.0)
    assert written(again.start(100.0)) == {}
    noticed = written(again.interrupt("node-7", 60.0, False, 100.0))
    assert noticed.keys() == {"cluster", "node/node-7", "node/node-21", "pipeline/pipeline-7"}


def test_a_restart_knows_the_machines_and_older_notes_tell_nothing_of_them() -> None:
    cluster = Prompt(PATIENT, drawer(), 0.0, 0.0)
    cluster.start(0.0)
    machine = MachineFacts(cores=2.0, devices=(Device("L4", 7),)).declare(MachineFacts(pool="a"))
    told = facts("node-1")
    shape = replace(told.shape, backend="vllm")
    cluster.register(replace(told, machine=machine, shape=shape), 0.0)
    again = Prompt.recover(PATIENT, drawer(), cluster.saved, 1.0, 1.0)
    assert machine_of(again, "node-1") == machine
    assert backend_of(again, "node-1") == "vllm"
    note = json.loads(cluster.saved["node/node-1"])
    del note["facts"]["machine"], note["facts"]["shape"]["backend"], note["shape"]["backend"]
    for said, backend in (({"backend": "vllm"}, "vllm"), ({}, "native")):  # once facts told it
        text = json.dumps({**note, "facts": {**note["facts"], **said}})
        older = {**cluster.saved, "node/node-1": text}
        again = Prompt.recover(PATIENT, drawer(), older, 1.0, 1.0)
        assert machine_of(again, "node-1") == NOTHING_KNOWN
        assert backend_of(again, "node-1") == backend


def test_how_large_blocks_are_is_not_known_of_a_formation_that_older_notes_tell_of() -> None:
    cluster = serving(1)
    (form,) = (p.formation_id for p in cluster.view.pipelines())
    note = json.loads(cluster.saved["pipeline/pipeline-1"])
    del note["formation"]["kv_block_bytes"]
    older = {**cluster.saved, "pipeline/pipeline-1": json.dumps(note)}
    again = Prompt.recover(cluster.settings, drawer(), older, 100.0, 100.0)
    again.start(100.0)
    known = again.view.runs_at(form)
    assert known is not None
    assert known.kv_block_bytes is None
    again.measured(form, 4096)
    assert written(again.tick(100.0)).keys() == {"pipeline/pipeline-1"}
    known = again.view.runs_at(form)
    assert known is not None
    assert known.kv_block_bytes == 4096


def backend_of(cluster: Prompt, node_id: str) -> str:
    node = cluster.view.node(node_id)
    assert node is not None
    return node.backend


def machine_of(cluster: Prompt, node_id: str) -> MachineFacts:
    node = cluster.view.node(node_id)
    assert node is not None
    return node.machine


@pytest.mark.parametrize("seed", range(10))
def test_the_notes_that_stand_tell_the_whole_state_at_any_time(seed: int) -> None:
    """Whatever happens: a restart finds plan, nodes, pipelines and their order as they were."""
    world, random = World(seed), Random(seed)
    for _ in range(60):
        world.turn()
        if random.random() < 0.2:
            cluster, saved = world.cluster, dict(world.cluster.saved)
            again = Prompt.recover(cluster.settings, drawer(), saved, world.now_s, world.now_s)
            assert again.plan == cluster.plan
            assert again.view.next_plan_number == cluster.view.next_plan_number
            assert [n.node_id for n in again.view.nodes()] == [
                n.node_id for n in cluster.view.nodes()
            ]
            assert [(p.pipeline_id, p.formation_id, p.stages) for p in again.view.pipelines()] == [
                (p.pipeline_id, p.formation_id, p.stages) for p in cluster.view.pipelines()
            ]
            assert set(again.view.deadlines_s()) == set(cluster.view.deadlines_s())
            assert again.view.running() == cluster.view.running()
