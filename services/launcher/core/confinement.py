"""What a container may be at most: each one is held against this before Docker is asked for it.

Whoever may create containers is root on the host: one that mounts / or is privileged is all it
takes. So what is not known to be harmless is refused, by the name that the compose file has for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.common.errors import FailedPrecondition
from services.launcher.core.containers import MESH_LABEL, NODE_LABEL

HARMLESS = frozenset(
    (
        *("CpuPeriod", "CpuQuota", "CpuShares", "CpusetCpus", "NanoCpus", "OomScoreAdj"),
        *("Memory", "MemoryReservation", "MemorySwap", "PidsLimit", "ShmSize", "Ulimits"),
        *("DeviceRequests", "Init", "LogConfig", "Tmpfs"),
    )
)
"""Of Docker's HostConfig; whatever they say gives no more than the container's own part."""
DANGEROUS: Mapping[str, str] = {
    "Privileged": "privileged",
    "Binds": "volumes",
    "CapAdd": "cap_add",
    "CgroupParent": "cgroup_parent",
    "DeviceCgroupRules": "device_cgroup_rules",
    "Devices": "devices",
    "GroupAdd": "group_add",
    "Links": "links",
    "OomKillDisable": "oom_kill_disable",
    "PidMode": "pid",
    "PortBindings": "ports",
    "PublishAllPorts": "ports",
    "Sysctls": "sysctls",
    "UTSMode": "uts",
    "UsernsMode": "userns_mode",
    "VolumesFrom": "volumes_from",
}
"""Of Docker's HostConfig, and the compose file's word for each."""
JUDGED = frozenset(
    (
        *("CapDrop", "IpcMode", "Mounts", "NetworkMode", "ReadonlyRootfs", "RestartPolicy"),
        *("Runtime", "SecurityOpt"),
    )
)
"""Of Docker's HostConfig, each held to a rule of its own."""
_CONTAINER = frozenset(
    (
        *("Env", "Healthcheck", "HostConfig", "Hostname", "Image", "Labels", "NetworkingConfig"),
        *("StopSignal", "StopTimeout", "User"),
    )
)
_ROOT = re.compile(r"(root|0*)(:.*)?")
_NO_NEW_PRIVILEGES = ("no-new-privileges", "no-new-privileges:true", "no-new-privileges=true")


@dataclass(frozen=True, slots=True)
class Confinement:
    """Of the containers of one mesh."""

    mesh: str
    """What their label says, and the compose project that they are of."""
    image: str
    """The only one, by name."""
    network: str
    """The only one, by name."""

    def check(self, body: Mapping[str, Any]) -> None:
        """The body of a request to create a container. Raises FailedPrecondition, whose field is
        the compose file's."""
        for key, value in body.items():
            _refuse(key not in _CONTAINER and bool(value), key, "is not for an engine")
        labels = body.get("Labels", {})
        _refuse(labels.get(MESH_LABEL) != self.mesh, "labels", f"{MESH_LABEL} is not {self.mesh}")
        _refuse(not labels.get(NODE_LABEL), "labels", f"{NODE_LABEL} names no node")
        _refuse(body.get("Image") != self.image, "image", f"is not {self.image}")
        user = str(body.get("User", ""))
        _refuse(_ROOT.fullmatch(user) is not None, "user", "an engine does not run as root")
        named = set(body.get("NetworkingConfig", {}).get("EndpointsConfig", {}))
        _refuse(named != {self.network}, "networks", f"are not {self.network} alone")
        self._check_host(body.get("HostConfig", {}))

    def _check_host(self, host: Mapping[str, Any]) -> None:
        for key, value in host.items():
            known = key in HARMLESS or key in JUDGED
            _refuse(not known and bool(value), DANGEROUS.get(key, key), "is not for an engine")
        _refuse(host.get("NetworkMode") != self.network, "network_mode", f"is not {self.network}")
        _refuse(host.get("IpcMode", "") not in ("", "private", "none"), "ipc", "is not its own")
        _refuse(host.get("Runtime", "") not in ("", "runc", "nvidia"), "runtime", "is not known")
        _refuse("ALL" not in (host.get("CapDrop") or ()), "cap_drop", "is not ALL")
        _refuse(not host.get("ReadonlyRootfs"), "read_only", "is not set")
        _refuse(not host.get("Memory"), "mem_limit", "is not set")
        _refuse((host.get("PidsLimit") or 0) <= 0, "pids_limit", "is not set")
        again = (host.get("RestartPolicy") or {}).get("Name", "")
        _refuse(again not in ("", "no"), "restart", "a node that ended is replaced, not restarted")
        options = host.get("SecurityOpt") or ()
        wanted = any(one in _NO_NEW_PRIVILEGES for one in options)
        more = [one for one in options if one not in _NO_NEW_PRIVILEGES]
        _refuse(not wanted or bool(more), "security_opt", "is not no-new-privileges:true alone")
        for mount in host.get("Mounts") or ():
            self._check_mount(mount)

    def _check_mount(self, mount: Mapping[str, Any]) -> None:
        kind, source = mount.get("Type"), str(mount.get("Source", ""))
        _refuse(kind != "volume", "volumes", f"{source or kind} of the host is mounted")
        own = re.fullmatch(rf"{re.escape(self.mesh)}_[A-Za-z0-9_.-]+", source)
        _refuse(own is None, "volumes", f"{source or 'one without a name'} is not of {self.mesh}")
        _refuse(not mount.get("ReadOnly"), "volumes", f"{source} is mounted to be written")
        options = mount.get("VolumeOptions") or {}
        _refuse(bool(options.get("DriverConfig")), "volumes", f"{source} has a driver of its own")

    def check_volume(self, name: str, described: Mapping[str, Any]) -> None:
        """A volume as Docker describes it: with options it may be a part of the host, or anything
        else that can be mounted. Raises FailedPrecondition."""
        plain = described.get("Driver") == "local" and not described.get("Options")
        _refuse(not plain, "volumes", f"{name} is more than a plain volume")


def _refuse(wrong: bool, field: str, reason: str) -> None:
    if wrong:
        raise FailedPrecondition(f"{field}: {reason}", field=field)
