"""The one thread of the process that computes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Compute:
    """Runs functions one after another, in the order they were given."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "compute")

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
        """Its result; to cancel the future does not stop what runs."""
        future = self._thread.submit(function, *args, **kwargs)
        return asyncio.wrap_future(future)

    def close(self) -> None:
        """What waits is dropped, what runs is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)
