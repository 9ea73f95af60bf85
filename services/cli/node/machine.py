"""What this machine is, as far as it has to be known before its engine starts."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import shutil
import socket
import time
from contextlib import suppress

from services.cli.node.metadata.cloud import Cloud
from services.common.errors import ShuntError
from services.common.machine import NOTHING_KNOWN, Device, MachineFacts

_log = logging.getLogger(__name__)

SMI = "nvidia-smi"
"""Comes with the driver, and asks NVML (nvidia-smi(1))."""
_QUERY = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
_SMI_S = 20.0
_LOOK_S = 0.5
_MIB = 1 << 20


async def devices() -> tuple[Device, ...]:
    """GPUs, as their driver has them; none where there is no driver, or it does not answer."""
    tool = shutil.which(SMI)
    if tool is None:
        return ()
    process = await asyncio.create_subprocess_exec(
        tool, *_QUERY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(_SMI_S):
            said, _ = await process.communicate()
    except TimeoutError:
        said = b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    found = devices_of(said.decode("utf-8", "replace")) if process.returncode == 0 else ()
    if not found:
        _log.warning("a driver, and no GPUs", extra={"status": process.returncode})
    return found


def devices_of(text: str) -> tuple[Device, ...]:
    """What the tool prints, a line a GPU: name and MiB. A line that is none is left out."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"\s*([^,]{1,128}?)\s*,\s*([0-9]{1,9})\s*", line)
        if match is not None and int(match[2]) and match[1].isprintable():
            found.append(Device(match[1], int(match[2]) * _MIB))
    return tuple(found)


async def told_by(cloud: Cloud | None, wait_s: float) -> MachineFacts:
    """What the cloud says of the machine; asked for so long, if need be, and told once if it was
    in vain."""
    if cloud is None:
        return NOTHING_KNOWN
    until_s, why = time.monotonic() + wait_s, ""
    while True:
        try:
            async with asyncio.timeout(max(_LOOK_S, until_s - time.monotonic())):
                return await cloud.facts()
        except (ShuntError, TimeoutError) as error:
            why = str(error) or "no answer"
        if time.monotonic() + _LOOK_S > until_s:
            _log.warning("nothing known of the machine", extra={"cloud": cloud.name, "why": why})
            return NOTHING_KNOWN
        await asyncio.sleep(_LOOK_S)


def own_address(peer: str) -> str:
    """The address here that a peer is reached from; empty where there is no way to it. Nothing is
    sent."""
    host, _, port = peer.rpartition(":")
    with suppress(OSError):
        for family, kind, _, _, address in socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_DGRAM
        ):
            with suppress(OSError), socket.socket(family, kind) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
    return ""


def is_loopback(address: str) -> bool:
    """Of this host alone."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
