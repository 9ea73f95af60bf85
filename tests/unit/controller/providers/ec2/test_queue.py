from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from services.controller.providers.ec2 import queue as queues
from services.controller.providers.ec2.calls import Calls
from services.controller.providers.ec2.complaints import Complaints
from services.controller.providers.ec2.messages import Message
from services.controller.providers.ec2.queue import Queue
from tests.waiting import until


def body(event_id: str) -> str:
    return json.dumps(
        {
            "id": event_id,
            "source": "aws.ec2",
            "detail-type": "EC2 Instance State-change Notification",
            "time": "2026-11-27T02:00:00Z",
            "detail": {"instance-id": "i-1", "state": "running"},
        }
    )


class Sqs:
    """Fails first, then has messages, then none."""

    def __init__(self, *bodies: str) -> None:
        self.batches = [[{"Body": b, "ReceiptHandle": f"r-{i}"} for i, b in enumerate(bodies)]]
        self.deleted: list[str] = []
        self.fails = True

    def receive_message(self, **asked: Any) -> dict[str, Any]:
        if self.fails:
            self.fails = False
            raise OSError("the line is down")
        return {"Messages": self.batches.pop()} if self.batches else {}

    def delete_message_batch(self, **asked: Any) -> dict[str, Any]:
        self.deleted += [entry["ReceiptHandle"] for entry in asked["Entries"]]
        return {}


async def test_what_was_heard_is_deleted_and_so_is_what_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queues, "PAUSE_S", 0.01)
    sqs, heard = Sqs(body("e-1"), "garbage", body("e-2")), list[Message]()
    queue = Queue(Calls(sqs, limit_s=0.0), "https://queue", wait_s=1)
    complaints = Complaints(logging.getLogger("test"))
    listening = asyncio.create_task(queue.listen(heard.append, complaints))
    await until(lambda: len(sqs.deleted) == 3)
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening
    assert [message.event_id for message in heard] == ["e-1", "e-2"]
