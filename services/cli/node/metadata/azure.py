"""Azure's instance metadata and its Scheduled Events.

https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service and
https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events. The first question for
events switches them on, and may be answered two minutes later: until then none is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from email.utils import parsedate_to_datetime

from services.cli.node.metadata.cloud import Clocks, name_of
from services.cli.node.metadata.service import MetadataService
from services.common.errors import InvalidArgument, Unavailable
from services.common.machine import MachineFacts
from services.common.notices import Notice, NoticeKind

URL = "http://169.254.169.254"
MAX_EVENTS = 256
_HEADERS = {"Metadata": "true"}
_INSTANCE = "/metadata/instance/compute?api-version=2021-02-01"
_EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
_KINDS = {
    "Preempt": NoticeKind.SPOT,
    "Terminate": NoticeKind.SHUTDOWN,
    "Redeploy": NoticeKind.SHUTDOWN,
    "Reboot": NoticeKind.SHUTDOWN,
}
"""Events behind which this process is no more; others are pauses."""


class Azure:
    """The VM that this process is on."""

    name = "azure"

    def __init__(self, service: MetadataService, clocks: Clocks, *, pause_s: float) -> None:
        self.pause_s = pause_s
        self._service = service
        self._clocks = clocks
        self._vm = ""
        """The name that events know it by."""

    async def facts(self) -> MachineFacts:
        """A zone has a region and, where there are several, a number."""
        vm = await self._compute()
        region, number = _text(vm, "location"), _text(vm, "zone")
        priority = _text(vm, "priority")
        return MachineFacts(
            instance_id=_text(vm, "vmId"),
            instance_type=_text(vm, "vmSize"),
            zone=f"{region}-{number}" if region and number else region,
            spot=None if priority is None else priority in ("Spot", "Low"),
        )

    async def look(self) -> Iterable[Notice]:
        if not self._vm:
            self._vm = _text(await self._compute(), "name") or ""
        events = events_of(await self._ask(_EVENTS), self._vm)
        deadlines = ((kind, self._deadline_s(at_unix_s)) for kind, at_unix_s in events)
        return [Notice(kind, at_s) for kind, at_s in deadlines if at_s is not None]

    def _deadline_s(self, at_unix_s: float | None) -> float | None:
        """What has begun has no time any more: it is now."""
        return self._clocks.here() if at_unix_s is None else self._clocks.deadline_s(at_unix_s)

    async def _compute(self) -> dict[str, object]:
        return _object(await self._ask(_INSTANCE), "compute")

    async def _ask(self, path: str) -> str:
        reply = await self._service.ask(self._service.path(path), _HEADERS)
        if reply.status != 200:
            raise Unavailable(f"the metadata service answers {reply.status}")
        return reply.text


def events_of(text: str, vm: str) -> list[tuple[NoticeKind, float | None]]:
    """Events that end the VM, with their times in seconds since 1970, None for what has begun.
    Raises InvalidArgument."""
    events = _object(text, "scheduledevents").get("Events")
    if not isinstance(events, list) or len(events) > MAX_EVENTS:
        raise InvalidArgument(f"Events are a list of at most {MAX_EVENTS}", field="Events")
    found = []
    for event in events:
        if not isinstance(event, dict):
            raise InvalidArgument("an event is a JSON object", field="Events")
        resources, kind = event.get("Resources"), _KINDS.get(str(event.get("EventType")))
        if kind is not None and isinstance(resources, list) and vm in resources:
            found.append((kind, _time_of(event)))
    return found


def _time_of(event: dict[str, object]) -> float | None:
    not_before = event.get("NotBefore")
    if event.get("EventStatus") == "Started" or not_before == "":
        return None
    try:
        return parsedate_to_datetime(str(not_before)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        raise InvalidArgument("a time reads as in HTTP", field="NotBefore") from None


def _object(text: str, name: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidArgument(f"{name} is a JSON object", field=name)
    return found


def _text(fields: dict[str, object], name: str) -> str | None:
    """None where nothing is said."""
    value = fields.get(name)
    return None if value in (None, "") else name_of(str(value), name)
