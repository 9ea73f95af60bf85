"""When a reply came to this machine, whenever its reader had a core to look.

A client on the machine that it measures waits for a core behind what it loads. The kernel notes
when each packet came (`SO_TIMESTAMPNS`, socket(7)), so what a reply took can be told without that.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import time

_SO_TIMESTAMPNS = 35
"""As asm-generic/socket.h has it; the name of the kernel's note as well."""
_TIMESPEC = struct.Struct("@qq")
"""Seconds and nanoseconds since 1970."""
_LARGEST_PACKET = 1 << 16


async def connected(host: str, port: int) -> socket.socket:
    """A connection whose packets have their moments noted."""
    loop = asyncio.get_running_loop()
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        if sys.platform == "linux":  # elsewhere the number means something else
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        await loop.sock_connect(connection, (host, port))
    except BaseException:
        connection.close()
        raise
    return connection


async def replied_in_s(connection: socket.socket, request: bytes) -> float:
    """Sends a request, and waits for its reply, of which nothing is read here. Seconds from the
    moment in which the kernel was given the request to that in which it had the reply's first
    packet; as seen from here where it notes none. Raises ConnectionError where none comes."""
    loop = asyncio.get_running_loop()
    began_ns = time.time_ns()
    await loop.sock_sendall(connection, request)
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection)
    data, notes, _, _ = connection.recvmsg(
        _LARGEST_PACKET, socket.CMSG_SPACE(_TIMESPEC.size), socket.MSG_PEEK
    )
    if not data:
        raise ConnectionError("the connection was closed without a reply")
    came_ns = time.time_ns()
    for level, kind, note in notes:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack(note)
            came_ns = seconds * 10**9 + nanoseconds
    return (came_ns - began_ns) / 1e9
