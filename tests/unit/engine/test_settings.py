from __future__ import annotations

import socket

import pytest
from pydantic import ValidationError

from services.engine import settings
from services.engine.settings import EngineSettings


def test_a_node_needs_a_name() -> None:
    with pytest.raises(ValidationError, match="node_id"):
        EngineSettings(node_id="")


def test_a_batch_of_decodes_alone_must_leave_room_for_prompts() -> None:
    with pytest.raises(ValidationError, match="starve"):
        EngineSettings(node_id="n", token_budget=64, max_sequences=64)


def test_readers_cannot_be_left_in_silence_until_routers_take_it_for_a_death() -> None:
    with pytest.raises(ValidationError, match="frame_interval_s"):
        EngineSettings(node_id="n", frame_interval_s=0.5)
    with pytest.raises(ValidationError, match="queued_frame_interval_s"):
        EngineSettings(node_id="n", queued_frame_interval_s=2.5)


def test_a_backend_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    assert EngineSettings(node_id="n").backend == "native"
    with pytest.raises(ValidationError, match=r"(?s)backend.*make vllm"):
        EngineSettings(node_id="n", backend="vllm")
    with pytest.raises(ValidationError, match="backend"):
        EngineSettings(node_id="n", backend="llama.cpp")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "meta", "", "cpu\n"])
def test_a_device_that_no_stage_computes_on_is_refused(device: str) -> None:
    with pytest.raises(ValidationError, match="device"):
        EngineSettings(node_id="n", device=device)
    assert EngineSettings(node_id="n", device="cuda:1").device == "cuda:1"


@pytest.mark.parametrize(
    ("host", "advertised", "reachable"),
    [
        ("127.0.0.1", "", "127.0.0.1"),
        ("0.0.0.0", "engine-1", "engine-1"),
        ("0.0.0.0", "", socket.gethostname()),
    ],
)
def test_others_are_told_an_address_they_can_reach(
    host: str, advertised: str, reachable: str
) -> None:
    settings = EngineSettings(node_id="n", host=host, advertise_host=advertised)
    assert settings.reachable_host == reachable


@pytest.mark.parametrize("controller", ["host", "a:1,", "a:1 b:2", ",".join(["a:1"] * 9)])
def test_a_controller_is_at_host_and_port_or_at_one_of_several(controller: str) -> None:
    with pytest.raises(ValidationError, match="controller"):
        EngineSettings(node_id="n", controller=controller)
    assert EngineSettings(node_id="n").controllers == ()
    assert EngineSettings(node_id="n", controller="a:1,[::1]:2").controllers == ("a:1", "[::1]:2")
