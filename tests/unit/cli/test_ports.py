from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from services.cli import ports
from services.cli.mesh_directory import MeshError


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind((ports.HOST, 0))
        listener.listen()
        yield int(listener.getsockname()[1])


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
