"""Ports of this host."""

from __future__ import annotations

import socket

from services.cli.mesh_directory import MeshError

HOST = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a server could listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def check_free(first: int, count: int, option: str) -> None:
    """Raises MeshError naming the first port that is taken and the option that moves it."""
    for port in range(first, first + count):
        if not 1 <= port <= 65535:
            raise MeshError(f"{port} is no port; {option} gives the first of {count}")
        if not is_free(port):
            raise MeshError(f"port {port} is taken; choose another with {option}")


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((HOST, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
