"""What the compose files say, read without a container engine."""

from __future__ import annotations

from pathlib import Path

import yaml

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose" / "compose.yaml"


def test_only_the_store_may_write_what_engines_map() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    mounts = {
        name: volume.removeprefix("store:/var/lib/shunt/store")
        for name, service in services.items()
        for volume in service.get("volumes", ())
        if volume.startswith("store:")
    }
    engines = {name: mode for name, mode in mounts.items() if name.startswith("engine-")}
    assert len(engines) == 4
    assert set(engines.values()) == {":ro"}
    assert set(mounts) - set(engines) == {"import", "tensorstore"}
