from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.common.nodes import NodeShape
from services.common.phases import PipelinePhase
from services.common.settings import read
from services.controller.core.cluster.goals import Goal
from services.controller.core.cluster.market import Market
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.model_facts import ModelFacts
from services.controller.kv_sources import Handover
from services.controller.providers.pacing import FOR_STEPS
from services.controller.settings import ControllerSettings

FACTS = ModelFacts("tiny", "ab", 6, 100, 512, "{}")


def test_speeds_become_nodes() -> None:
    settings = ControllerSettings(node_speeds="3:2,1.5", node_memory_bytes=7)
    assert settings.supply.initial_nodes == (
        NodeShape(7, 3.0),
        NodeShape(7, 2.0),
        NodeShape(7, 1.5),
    )
    cluster = settings.cluster(FACTS)
    assert (cluster.expected_nodes, cluster.first.facts.context_length) == (3, 512)
    assert cluster.can_launch


def test_each_deadline_of_an_engines_answers_is_a_setting() -> None:
    deadlines = asdict(ControllerSettings().engine_timeouts)
    named = dict.fromkeys(deadlines) | {
        "hold_progress_s": "hold_progress_s",
        "describe_s": "engine_describe_timeout_s",
    }
    for number, (name, setting) in enumerate(named.items(), 11):
        chosen = ControllerSettings.model_validate(
            {setting or f"{name.removesuffix('_s')}_timeout_s": number}
        )
        assert asdict(chosen.engine_timeouts) == deadlines | {name: number}


def test_containers_are_launched_as_local_nodes_are() -> None:
    settings = ControllerSettings(provider="docker", node_speeds="3:2", node_memory_bytes=7)
    assert settings.supply.initial_nodes == (NodeShape(7, 3.0), NodeShape(7, 2.0))
    assert [offer.offer_id for offer in settings.supply.offers] == ["docker-3.0", "docker-2.0"]
    assert {offer.instance_type for offer in settings.supply.offers} == {"docker"}
    assert settings.cluster(FACTS).can_launch


def test_backends_are_of_the_pipelines_in_turn() -> None:
    settings = ControllerSettings(node_speeds="3:2,3:2", node_backend="native,vllm")
    shapes = settings.supply.initial_nodes
    assert [(s.relative_speed, s.backend) for s in shapes] == [
        *((3.0, "native"), (2.0, "native")),
        *((3.0, "vllm"), (2.0, "vllm")),
    ]
    offers = {offer.offer_id: offer.shape for offer in settings.supply.offers}
    assert offers == {
        f"local-{s.relative_speed}-{s.backend}": s for s in shapes
    }  # else two would have one name
    of_one = ControllerSettings(node_backend="vllm")
    assert {shape.backend for shape in of_one.supply.initial_nodes} == {"vllm"}
    assert [offer.offer_id for offer in of_one.supply.offers] == ["local-3.0", "local-2.0"]


@pytest.mark.parametrize(
    ("backends", "told"),
    [
        ("tgi", "native or vllm, or several"),
        ("native,", "native or vllm"),
        ("", "native or vllm"),
        ("native,vllm,native", "3 backends for 2 pipelines of node_speeds"),
    ],
)
def test_backends_that_are_none_or_too_many_are_refused(backends: str, told: str) -> None:
    with pytest.raises(ValidationError, match=told) as no:
        ControllerSettings(node_backend=backends)
    assert no.value.errors()[0]["loc"] == ("node_backend",)


def test_a_mesh_of_native_nodes_has_the_basis_that_it_had_before_there_were_others() -> None:
    native = ControllerSettings(node_speeds="3").cluster(FACTS)
    assert "backend" not in native.basis
    vllm = ControllerSettings(node_speeds="3", node_backend="vllm").cluster(FACTS)
    assert '"backend": "vllm"' in vllm.basis


def test_external_nodes_are_waited_for() -> None:
    cluster = ControllerSettings(provider="external", expected_nodes=6).cluster(FACTS)
    assert (cluster.initial, cluster.expected_nodes, cluster.can_launch) == ((), 6, False)


@pytest.mark.parametrize("speeds", ["", "3:", "3;2", "fast", "-1", "3:0", "1000001"])
def test_speeds_that_are_no_numbers_are_refused(speeds: str) -> None:
    with pytest.raises(ValidationError, match="node_speeds"):
        ControllerSettings(node_speeds=speeds)


@pytest.mark.parametrize("name", ["heartbeat_interval_s", "glance_s"])
def test_a_beat_and_a_look_at_it_come_before_a_node_is_doubted(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        ControllerSettings(**{name: ClusterSettings(Goal(FACTS)).doubt_s})


def test_a_group_of_commits_never_waits_longer_than_20_ms() -> None:
    with pytest.raises(ValidationError, match="commit_interval_s"):
        ControllerSettings(commit_interval_s=0.021)


def test_the_environment_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHUNT_CONTROLLER_DATA_DIR", "/somewhere")
    monkeypatch.setenv("SHUNT_CONTROLLER_PIPELINES", "3")
    settings = read(ControllerSettings)
    assert (settings.data_dir, settings.pipelines) == (Path("/somewhere"), 3)
    monkeypatch.setenv("SHUNT_CONTROLLER_PIPELINES", "none")
    with pytest.raises(SystemExit) as stopped:
        read(ControllerSettings)
    assert stopped.value.code == 2
    assert "SHUNT_CONTROLLER_PIPELINES" in capsys.readouterr().err


def test_without_a_market_every_speed_is_offered_as_often_as_anybody_asks() -> None:
    settings = ControllerSettings(node_speeds="3:2,3:2")
    three, two = settings.supply.offers
    assert (three.shape, two.shape) == (
        settings.supply.initial_nodes[0],
        settings.supply.initial_nodes[1],
    )
    assert (three.count, three.price_per_hour, three.declared) == (10_000, None, True)
    market = Market()
    assert market.update(settings.supply.offers).dropped == ()
    assert ControllerSettings(provider="external").supply.offers == ()


def test_a_market_decides_the_nodes_of_the_first_plan(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        "offers: [{id: a, count: 4, price_per_hour: 1, relative_speed: 3, memory_bytes: 9,"
        " launch_s: 30}]"
    )
    settings = ControllerSettings(market_file=path, node_speeds="3:3")
    assert settings.supply.initial_nodes == (NodeShape(9, 3.0),) * 2
    assert [offer.offer_id for offer in settings.supply.offers] == ["a"]
    plain = ControllerSettings().cluster(FACTS).launch_timeout_s
    assert settings.cluster(FACTS).launch_timeout_s == plain + 30


def test_declared_speeds_are_shares_of_the_cores_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        "offers: [{id: slow, count: 4, price_per_hour: 1},"
        " {id: fast, count: 0, price_per_hour: 1, relative_speed: 4}]\n"
        "events: [{at_s: 3, offer: fast, count: 2}]"
    )
    monkeypatch.setattr("services.controller.supply.usable_cores", lambda: 2.0)
    settings = ControllerSettings(market_file=path, node_speeds="1:1,1:1", nodes_max=6)
    assert settings.supply.core_share(4.0) == pytest.approx(FOR_STEPS * 4 * 2 / 12)
    assert settings.supply.core_share(1.0) == pytest.approx(FOR_STEPS * 2 / 12)
    fewer = ControllerSettings(market_file=path, node_speeds="1:1")
    assert fewer.supply.core_share(4.0) == pytest.approx(FOR_STEPS * 4 * 2 / 8)
    assert ControllerSettings().supply.core_share(3.0) == 1.0, (
        "nobody has named a speed of a market"
    )


def test_a_market_that_offers_nothing_yet_has_a_share_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("offers: [{id: a, count: 0, price_per_hour: 1}]")
    assert 0 < ControllerSettings(market_file=path, node_speeds="1").supply.core_share(1.0) <= 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "no offer has the relative_speed 3"),
        ({"node_speeds": "1", "provider": "external"}, "the provider external has no market"),
    ],
)
def test_a_market_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, given: dict[str, str], told: str
) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("offers: [{id: a, count: 4, price_per_hour: 1}]")
    with pytest.raises(ValidationError, match=told) as refused:
        ControllerSettings(market_file=path, **given)
    assert refused.value.errors()[0]["loc"] == ("market_file",)


def test_the_example_of_a_market_is_one_for_the_nodes_there_are() -> None:
    example = Path(__file__).parents[3] / "deploy" / "markets" / "laptop.yaml"
    settings = ControllerSettings(market_file=example)
    assert len(settings.supply.initial_nodes) == 4
    assert settings.market is not None
    assert any(event.take for event in settings.market.events)


def test_given_stages_need_a_node_each_and_no_planner_of_its_own_degrees() -> None:
    settings = ControllerSettings(stages="0-1:tp1,2-5:tp2", node_speeds="3:2,3:2")
    assert [stage.tp_degree for stage in settings.planned_stages] == [1, 2]
    assert {shape.device_count for shape in settings.supply.initial_nodes} == {2}
    assert not settings.succession.automatic
    assert ControllerSettings().planned_stages == ()
    assert ControllerSettings().succession.automatic
    for given, why in (
        ({"node_speeds": "3:2,3"}, "2 stages, and node_speeds has a pipeline of 1 nodes"),
        ({"strategy": "spotserve"}, "spotserve makes stages of its own"),
        ({"stages": "0-1;"}, "stages read"),
    ):
        with pytest.raises(ValidationError, match=why):
            ControllerSettings(**{"stages": "0-1,2-5", **given})
    ControllerSettings(stages="0-1,2-5", provider="external", node_speeds="3")


@pytest.mark.parametrize("journal", ["mysql://me:secret@db", "sqlite:", "postgresql://[secret"])
def test_a_journal_that_is_no_place_is_named_and_not_repeated(
    journal: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHUNT_CONTROLLER_JOURNAL", journal)
    with pytest.raises(SystemExit) as ended:
        read(ControllerSettings)
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert "SHUNT_CONTROLLER_JOURNAL: " in told
    assert "secret" not in told


def test_the_journals_password_is_in_no_text_of_the_settings() -> None:
    settings = ControllerSettings(journal="postgresql://me:secret@db/mesh")
    assert "secret" not in f"{settings!r} {settings} {settings.journal_place!r}"


def test_phases_are_of_pipelines_that_there_are_and_need_generations_that_move() -> None:
    settings = ControllerSettings(phases="prefill,decode", node_speeds="3:2,3:2")
    assert settings.planned_phases == (PipelinePhase.PREFILL, PipelinePhase.DECODE)
    assert ControllerSettings().planned_phases == ()
    for given, why in (
        ({"node_speeds": "3:2"}, "2 phases for 1 pipelines of node_speeds"),
        ({"strategy": "none"}, "none hands nothing on"),
        ({"phases": "prefill;decode"}, "one a pipeline"),
    ):
        with pytest.raises(ValidationError, match=why):
            ControllerSettings(**{"phases": "prefill,decode", **given})


@pytest.mark.parametrize(
    ("strategy", "handover", "by"),
    [
        ("full", "auto", "auto"),
        ("spotserve", "kv", "kv"),
        ("full", "replay", "replay"),
        ("none", "auto", "replay"),
        ("concurrent-init", "kv", "replay"),
    ],
)
def test_what_was_computed_goes_along_only_with_what_goes_on(
    strategy: str, handover: Handover, by: str
) -> None:
    found = ControllerSettings(strategy=strategy, handover=handover)
    assert found.hands_over_by == by
    assert (found.cluster(FACTS).ahead_s > 0) is (by != "replay")
