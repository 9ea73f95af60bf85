"""Calls of AWS: each in a thread of its own, tried again while it fails in passing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
)
from botocore.parsers import ResponseParserError
from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from services.controller.providers.ec2.failures import Matter, Refusal, matter_of

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 10.0
MAX_PAGES = 1000

T = TypeVar("T")
_OF_THE_WAY = (
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    OSError,
    ResponseParserError,
)
"""Of the connection or of an answer, and not of what was asked or with whose rights."""


def make_client(service: str, region: str, *, read_timeout_s: float = READ_TIMEOUT_S) -> Any:
    """A client that tries nothing again by itself: EC2 says with a server error that a pool has no
    capacity."""
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=read_timeout_s,
        retries={"total_max_attempts": 1, "mode": "standard"},
    )
    # a session of its own: the default one keeps the credentials of its first use
    return boto3.session.Session().client(service, region_name=region or None, config=config)


async def in_thread(work: Callable[[], T]) -> T:
    """Its result. The thread holds up nobody's end: one that waits for an answer is left behind."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(settle: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            settle(value)

    def run() -> None:
        try:
            value, settle = work(), done.set_result
        except Exception as error:  # it is raised where the result is awaited
            value, settle = error, done.set_exception  # type: ignore[assignment]
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, settle, value)

    threading.Thread(target=run, name="aws", daemon=True).start()
    return await done


class Calls:
    """A client's operations as coroutines; what fails is a Refusal."""

    def __init__(self, client: Any, *, limit_s: float) -> None:
        """Nothing is tried again after `limit_s`."""
        self._client = client
        self._limit_s = limit_s

    async def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """The answer. Raises Refusal."""
        return await in_thread(lambda: self._tried(operation, arguments))

    async def pages(self, operation: str, **arguments: Any) -> list[dict[str, Any]]:
        """All pages of an answer. Raises Refusal."""
        pages: list[dict[str, Any]] = []
        token: dict[str, str] = {}
        while True:
            pages.append(await self.call(operation, **arguments, **token))
            following = pages[-1].get("NextToken")
            if not following:
                return pages
            if len(pages) == MAX_PAGES:
                raise Refusal(Matter.OPERATOR, "TooManyPages", f"{operation}: over {MAX_PAGES}")
            token = {"NextToken": following}

    def _tried(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        doubt = False

        def once() -> dict[str, Any]:
            nonlocal doubt
            try:
                return self._once(operation, arguments)
            except Refusal as refusal:
                doubt = doubt or refusal.matter is Matter.PASSING
                refusal.in_doubt = doubt
                raise

        tries = Retrying(
            stop=stop_after_delay(self._limit_s),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            retry=retry_if_exception(_passes),
            reraise=True,
        )
        return tries(once)

    def _once(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        with _translated():
            answer: dict[str, Any] = getattr(self._client, operation)(**arguments)
            return answer


def _passes(error: BaseException) -> bool:
    return isinstance(error, Refusal) and error.matter in (Matter.THROTTLED, Matter.PASSING)


@contextmanager
def _translated() -> Iterator[None]:
    """Refusals for what boto3 and the connections below it raise."""
    try:
        yield
    except ClientError as error:
        said: Any = error.response.get("Error", {})
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = str(said.get("Code", ""))
        raise Refusal(matter_of(code, status), code, str(said.get("Message", ""))) from None
    except _OF_THE_WAY as error:
        raise Refusal(Matter.PASSING, type(error).__name__, str(error)) from None
    except BotoCoreError as error:
        raise Refusal(Matter.OPERATOR, type(error).__name__, str(error)) from None
