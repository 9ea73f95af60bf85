"""Connections to S3 that are broken off when an answer is not there in time.

A socket's timeout begins again with each byte: a server that sends one now and then keeps who waits
for the head of an answer, or reads a listing, for ever.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)

from services.common.errors import Unavailable


class _Watch(threading.local):
    """What this thread waits for."""

    answer: Answer | None = None


_watch = _Watch()


class Answer:
    """One answer, and whether it was given up: it has `limit_s` from when it is waited for."""

    def __init__(self, limit_s: float) -> None:
        self.late = False
        self.body: Any = None
        """What is still to be read of it; closed when it was late."""
        self._limit_s = limit_s
        self._timer: threading.Timer | None = None

    def comes_by(self, found: socket.socket) -> None:
        """What was asked is sent; its answer comes by this socket."""
        self.end()
        self._timer = threading.Timer(self._limit_s, self._give_up, (found,))
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _give_up(self, found: socket.socket) -> None:
        self.late = True
        with suppress(OSError):  # it has just come to its end
            found.shutdown(socket.SHUT_RDWR)


class _Watched:
    """A connection that tells by which socket the answer comes."""

    sock: Any

    def getresponse(self) -> Any:
        if _watch.answer is not None:
            _watch.answer.comes_by(self.sock)
        inherited: Any = super()
        return inherited.getresponse()


class _Connection(_Watched, AWSHTTPConnection):  # type: ignore[misc]
    pass


class _SecureConnection(_Watched, AWSHTTPSConnection):  # type: ignore[misc]
    pass


class _Pool(AWSHTTPConnectionPool):  # type: ignore[misc]
    ConnectionCls = _Connection


class _SecurePool(AWSHTTPSConnectionPool):  # type: ignore[misc]
    ConnectionCls = _SecureConnection


def watch_connections(client: Any) -> None:
    """Has a boto3 client use connections that `in_time` can break off."""
    pools = client._endpoint.http_session._pool_classes_by_scheme
    pools |= {"http": _Pool, "https": _SecurePool}


@contextmanager
def in_time(limit_s: float, what: str) -> Iterator[Answer]:
    """One call inside the block, with all of its answer that the call itself reads; Unavailable
    when it is not there in time, for a head that was cut short looks like a whole one."""
    before, answer = _watch.answer, Answer(limit_s)
    _watch.answer = answer
    try:
        yield answer
    except Exception:
        if not answer.late:
            raise
    finally:
        answer.end()
        _watch.answer = before
    if answer.late:
        if answer.body is not None:
            answer.body.close()
        raise Unavailable(f"S3 did not answer in time at {what}", field="store")
