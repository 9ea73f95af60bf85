"""What the compose files say, read without a container engine."""

from __future__ import annotations

from pathlib import Path

import yaml

from services.launcher.core.pattern import Order, body_of

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose" / "compose.yaml"
TLS = COMPOSE.with_name("tls.yaml")
AUTHORITY = "/var/lib/shunt/authority"


def test_only_the_store_may_write_what_engines_map() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    mounts = {
        name: volume.removeprefix("store:/var/lib/shunt/store")
        for name, service in services.items()
        for volume in service.get("volumes", ())
        if str(volume).startswith("store:")
    }
    assert mounts.pop("engine") == ":ro"
    assert set(mounts) == {"import", "tensorstore"}


def test_one_service_alone_holds_dockers_socket() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert [name for name, one in services.items() if "docker.sock" in str(one)] == ["launcher"]
    assert [name for name, one in services.items() if one.get("cap_add")] == ["launcher"]


def test_the_pattern_goes_before_the_launcher_and_comes_behind_it() -> None:
    """So at `down` the launcher sees that the mesh is no more."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert set(services["engine"]["depends_on"]) == {"launcher"}
    assert {"launcher", "engine"} <= set(services["controller"]["depends_on"])


def test_with_tls_each_service_has_its_own_role_s_certificates_to_read() -> None:
    services = yaml.safe_load(TLS.read_text())["services"]
    writes = services.pop("certificates")
    roles = {f"tls-{name}:{AUTHORITY}/{name}" for name in services}
    assert set(writes["volumes"]) == {*roles, f"authority:{AUTHORITY}"}
    assert writes["network_mode"] == "none"
    asked = {"tensorstore", "placement", "launcher", "controller", "router"}
    assert set(services) == asked | {"engine"}
    for name, service in services.items():
        assert service["volumes"] == [f"tls-{name}:/var/lib/shunt/tls:ro"], name
        assert service["environment"] == {"SHUNT_TLS_DIRECTORY": "/var/lib/shunt/tls"}, name


def test_engines_share_a_certificate_for_the_names_that_the_launcher_gives_them() -> None:
    pattern = {"Config": {"Labels": {"com.docker.compose.service": "engine"}}}
    told = body_of(pattern, Order("node-7", "a", {}), mesh="shunt")["Env"]
    (advertised,) = [line.partition("=")[2] for line in told if "ADVERTISE_HOST" in line]
    (command,) = yaml.safe_load(TLS.read_text())["services"]["certificates"]["command"]
    assert f"engine --host '*.{advertised.partition('.')[2]}'" in command
