"""The event loop of a service.

gRPC's thread tells an event loop of each event by a byte in a pair of sockets, of which the loop
reads one a turn. All events that are there by then are handled, so that looks harmless; but what is
not read stays, and a pair holds some hundred such bytes. Once it is full, the thread waits until
one was read: from then on one event comes in by a turn of the loop, however many there are, until
there are few again. A router with a thousand streams, whose turns took some tens of milliseconds,
heard nobody for half a minute. So all bytes are read here, before the events are handled that they
stand for.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

import uvloop

if TYPE_CHECKING:
    from _typeshed import HasFileno

_Given = TypeVarTuple("_Given")
_Result = TypeVar("_Result")
_GRPCS = "PollerCompletionQueue._handle_events"
"""What gRPC has called when there is a byte; it reads one itself."""
_MOST_BYTES = 1 << 16


class _Loop(uvloop.Loop):
    def add_reader(
        self, fd: int | HasFileno, callback: Callable[[*_Given], Any], *args: *_Given
    ) -> None:
        called = callback.func if isinstance(callback, functools.partial) else callback
        if isinstance(fd, socket.socket) and getattr(called, "__qualname__", "") == _GRPCS:
            super().add_reader(fd, functools.partial(_after_all_bytes, fd, callback), *args)
        else:
            super().add_reader(fd, callback, *args)


def _after_all_bytes(pair: socket.socket, callback: Callable[..., Any], *args: Any) -> None:
    """An event is there before its byte: none of those whose bytes are read here is missed."""
    waiting = len(pair.recv(_MOST_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    if waiting > 1:
        pair.recv(waiting - 1, socket.MSG_DONTWAIT)
    callback(*args)


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Runs a service to its end."""
    return uvloop.run(main, loop_factory=_Loop)
