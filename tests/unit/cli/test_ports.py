from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from services.cli import ports
from services.cli.mesh_directory import MeshError


@pytest.fixture
def taken() -> Iterator[int]:
    """One that listens, behind one that nobody has; neither is in the range that is handed out."""
    for port in range(20001, 30000, 2):
        with socket.socket() as before, socket.socket() as listener:
            try:
                before.bind((ports.HOST, port - 1))
                listener.bind((ports.HOST, port))
            except OSError:
                continue
            before.close()
            listener.listen()
            yield port
            return


def test_a_taken_port_is_named_with_the_option_that_moves_it(taken: int) -> None:
    with pytest.raises(MeshError, match=f"port {taken} is taken; .*--http-port"):
        ports.check_free(taken, 1, "--http-port")


def test_the_ports_behind_the_first_count_too(taken: int) -> None:
    with pytest.raises(MeshError, match=f"port {taken} is taken"):
        ports.check_free(taken - 1, 2, "--grpc-port")


@pytest.mark.parametrize("first", [0, -1, 65536])
def test_a_number_that_is_no_port_is_refused(first: int) -> None:
    with pytest.raises(MeshError, match="is no port"):
        ports.check_free(first, 1, "--http-port")


def test_free_ports_differ() -> None:
    assert len(set(ports.free_ports(5))) == 5
