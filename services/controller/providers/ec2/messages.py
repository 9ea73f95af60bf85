"""What EventBridge says through a queue: read with care, and told once.

Messages come twice, late, out of order, and of instances that are nobody's business here. So a
message says only that an instance has notice until then, is advised against, or is worth a look:
its state is what DescribeInstances says, and nothing else.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

SOURCE = "aws.ec2"
NOTICE_S = 120.0
"""From an interruption warning to the end, as EC2 gives it."""
MAX_REMEMBERED = 4096
MAX_BODY_CHARS = 64 << 10
_EARLIEST_S = 0.0
_LATEST_S = 253_402_300_799.0


class Said(StrEnum):
    """What a message is about."""

    INTERRUPTION = "interruption"
    """The instance ends then."""
    REBALANCE = "rebalance"
    """It is likelier to be interrupted than before."""
    STATE = "state"
    """It may be in another state."""


_KINDS = {
    "EC2 Spot Instance Interruption Warning": Said.INTERRUPTION,
    "EC2 Capacity Reservation Instance Interruption Warning": Said.INTERRUPTION,
    "EC2 Instance Rebalance Recommendation": Said.REBALANCE,
    "EC2 Instance State-change Notification": Said.STATE,
}


@dataclass(frozen=True, slots=True)
class Message:
    """Of one instance."""

    event_id: str
    said: Said
    instance_id: str
    at_s: float
    """Wall time: the end, for an interruption; else when it was said."""


def read(body: str) -> Message | None:
    """None for what is no such message, or none that can be made sense of."""
    if len(body) > MAX_BODY_CHARS:
        return None
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("source") != SOURCE:
        return None
    detail = document.get("detail")
    said = _KINDS.get(_text(document, "detail-type"))
    if said is None or not isinstance(detail, dict):
        return None
    instance_id, event_id = _text(detail, "instance-id"), _text(document, "id")
    at_s = _time(_text(document, "time"))
    if not instance_id or not event_id or at_s is None:
        return None
    if said is Said.INTERRUPTION:
        named_s = _time(_text(detail, "instance-termination-time"))
        at_s = at_s + NOTICE_S if named_s is None else named_s
    return Message(event_id, said, instance_id, at_s)


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    return value if isinstance(value, str) else ""


def _time(text: str) -> float | None:
    try:
        seen = datetime.fromisoformat(text)
        at_s = (seen if seen.tzinfo else seen.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    return at_s if _EARLIEST_S <= at_s <= _LATEST_S else None


class Heard:
    """Messages, each once; those of instances that are not known yet are kept until they are."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._early: OrderedDict[str, Message] = OrderedDict()
        """Notices of instances that nobody knows, the earliest of each: they may be strangers', or
        come before EC2's answer to the order."""

    def is_new(self, message: Message) -> bool:
        """The first time; of so many, that is."""
        if message.event_id in self._ids:
            return False
        self._ids[message.event_id] = None
        if len(self._ids) > MAX_REMEMBERED:
            self._ids.popitem(last=False)
        return True

    def keep(self, message: Message) -> None:
        """Its instance is not known."""
        if message.said is not Said.INTERRUPTION:
            return
        kept = self._early.get(message.instance_id)
        if kept is None or message.at_s < kept.at_s:
            self._early[message.instance_id] = message
        if len(self._early) > MAX_REMEMBERED:
            self._early.popitem(last=False)

    def kept(self, instance_id: str) -> Message | None:
        """What was said of an instance before it was known; once."""
        return self._early.pop(instance_id, None)
