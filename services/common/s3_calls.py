"""One request to S3: tried again when it fails in passing, broken off when it crawls, and what it
failed of as a domain error."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)
from urllib3.exceptions import HTTPError

from services.common.errors import (
    DataLoss,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ShuntError,
    Unavailable,
)

PIECE_BYTES = 1 << 20
"""What is read of a body at a time."""
ATTEMPTS = 6
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 5.0
READ_TIMEOUT_S = 20
DEADLINE_S = 60.0  # after it an operation is not tried again; plus the time its bytes may take
LEAST_BYTES_PER_S = 1 << 20  # a body that comes more slowly counts as broken off
PASSING = ("RequestTimeout", "BadDigest")  # S3 says 400 of a body that came late, or damaged


@contextmanager
def closed_unless_read(body: Any) -> Iterator[None]:
    """Closes the connection of a body that was left in the middle."""
    try:
        yield
    except BaseException:
        body.close()  # what is left unread would spoil the connection for the next request
        raise


def received_of(body: Any, size_bytes: int, what: str) -> Generator[bytes, None, None]:
    """A body in pieces; raises Unavailable for one that breaks off or is not of this size."""
    received = 0
    with _in_time(body, size_bytes):
        for piece in body.iter_chunks(PIECE_BYTES):
            received += len(piece)
            if received > size_bytes:
                break
            yield piece
    if received != size_bytes:
        raise Unavailable(f"S3 sent {received} bytes of {size_bytes} of {what}", field="store")


def limit_s(size_bytes: int = 0) -> float:
    """How long one answer, or so many bytes, may take."""
    return READ_TIMEOUT_S + size_bytes / LEAST_BYTES_PER_S


@contextmanager
def _in_time(body: Any, size_bytes: int) -> Iterator[None]:
    """Breaks off a body that crawls: each byte begins the socket's timeout again."""
    timer = threading.Timer(limit_s(size_bytes), _break_off, (body._raw_stream,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _break_off(stream: Any) -> None:
    with suppress(RuntimeError, ValueError, OSError):  # it has just come to its end
        stream.shutdown()


def attempts(size_bytes: int = 0) -> Retrying:
    """Attempts at what moves so many bytes: more while it is Unavailable, with growing waits."""
    return Retrying(
        stop=stop_after_attempt(ATTEMPTS)
        | stop_after_delay(DEADLINE_S + size_bytes / LEAST_BYTES_PER_S),
        wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        retry=retry_if_exception_type(Unavailable),
        reraise=True,
    )


@contextmanager
def translated(what: str) -> Iterator[None]:
    """The error tree's names for what boto3 and the connections below it raise."""
    try:
        yield
    except ClientError as error:
        raise _error(error, what) from None
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise PermissionDenied(f"S3: {error}", field="store") from None
    except (BotoCoreError, HTTPError, HTTPException, OSError) as error:
        raise Unavailable(f"S3: {type(error).__name__} at {what}", field="store") from None


def _error(error: ClientError, what: str) -> ShuntError:
    answer: Any = error.response
    code = str(answer.get("Error", {}).get("Code", ""))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in ("NoSuchKey", "NotFound", "404") or (status == 404 and code != "NoSuchBucket"):
        return NotFound(f"{what} is not in the store", field="digest")
    if status == 412:
        return DataLoss(f"{what} changed while it was read", field="digest")
    if status == 416:
        return DataLoss(f"{what} is shorter than the manifest says", field="digest")
    if status in (401, 403):
        return PermissionDenied(f"S3 refused: {code}", field="store")
    if status in (408, 429) or status >= 500 or code in PASSING:
        return Unavailable(f"S3 answered {status} {code}", field="store")
    return InvalidArgument(f"S3 answered {status} {code}", field="store")
