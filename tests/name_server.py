"""A name server of the tests' own: one name, whose address changes or is taken away."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from typing import Any

_A, _NAME_ERROR = 1, 3


class NameServer(asyncio.DatagramProtocol):
    """Answers every question for an IPv4 address with `address`; None: there is no such name."""

    def __init__(self, address: str | None) -> None:
        self.address = address
        self.asked = 0
        self.port = 0
        self._transport: Any = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        where = ("127.0.0.1", 0)
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, where)
        self.port = self._transport.get_extra_info("sockname")[1]

    def close(self) -> None:
        self._transport.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        end = data.index(b"\0", 12) + 5
        question = data[12:end]
        (kind,) = struct.unpack(">H", question[-4:-2])
        self.asked += kind == _A
        answers = b""
        if self.address is not None and kind == _A:
            packed = ipaddress.IPv4Address(self.address).packed
            answers = struct.pack(">HHHIH", 0xC00C, _A, 1, 0, 4) + packed
        flags = 0x8180 | (_NAME_ERROR if self.address is None else 0)
        head = data[:2] + struct.pack(">HHHHH", flags, 1, 1 if answers else 0, 0, 0)
        self._transport.sendto(head + question + answers, addr)
