"""The queue that EventBridge writes to, polled for as long as somebody listens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from services.controller.providers.ec2.calls import Calls
from services.controller.providers.ec2.complaints import Complaints
from services.controller.providers.ec2.failures import Refusal
from services.controller.providers.ec2.messages import Message, read

MAX_BATCH = 10
PAUSE_S = 5.0
"""After a poll that failed for good."""


class Queue:
    """One SQS queue."""

    def __init__(self, sqs: Calls, url: str, *, wait_s: int) -> None:
        """A poll waits so long for a message."""
        self._sqs = sqs
        self._url = url
        self._wait_s = wait_s

    async def listen(self, hear: Callable[[Message], None], complaints: Complaints) -> None:
        """Hears until cancelled. A message that was heard is deleted, and so is one that says
        nothing; one that was not deleted comes again, which is no harm."""
        while True:
            try:
                batch = await self._receive()
                for one in batch:
                    if message := read(one.get("Body", "")):
                        hear(message)
                await self._delete(batch)
                complaints.over("listen")
            except Refusal as refusal:
                complaints.about("listen", refusal)
                await asyncio.sleep(PAUSE_S)

    async def _receive(self) -> list[dict[str, Any]]:
        answer = await self._sqs.call(
            "receive_message",
            QueueUrl=self._url,
            MaxNumberOfMessages=MAX_BATCH,
            WaitTimeSeconds=self._wait_s,
        )
        batch: list[dict[str, Any]] = answer.get("Messages", [])
        return batch

    async def _delete(self, batch: list[dict[str, Any]]) -> None:
        if batch:
            entries = [
                {"Id": str(place), "ReceiptHandle": one["ReceiptHandle"]}
                for place, one in enumerate(batch)
            ]
            await self._sqs.call("delete_message_batch", QueueUrl=self._url, Entries=entries)
