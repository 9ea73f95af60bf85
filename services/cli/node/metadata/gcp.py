"""Google Compute Engine's metadata server; it can be asked to answer once a value has changed.

https://cloud.google.com/compute/docs/metadata/querying-metadata and
https://cloud.google.com/compute/docs/instances/spot: a VM that was preempted has 30 s.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

from services.cli.node.metadata.cloud import Clocks, name_of
from services.cli.node.metadata.service import MetadataService, Reply
from services.common.errors import InvalidArgument, Unavailable
from services.common.machine import MachineFacts
from services.common.notices import Notice, NoticeKind

URL = "http://metadata.google.internal"
PREEMPTION_S = 30.0
WAIT_S = 60
"""For a change, at a time."""
_HEADERS = {"Metadata-Flavor": "Google"}
_ROOT = "/computeMetadata/v1/instance/"


class Gcp:
    """The VM that this process is on."""

    name = "gcp"

    def __init__(self, service: MetadataService, clocks: Clocks, *, pause_s: float) -> None:
        self.pause_s = min(1.0, pause_s)
        self._service = service
        self._clocks = clocks
        self._seen = ""
        """Tag of the value that was told last."""
        self._preempted: Notice | None = None

    async def facts(self) -> MachineFacts:
        """The last parts of names that are paths."""
        spot = await self._known("scheduling/preemptible")
        return MachineFacts(
            instance_id=await self._known("id"),
            instance_type=await self._known("machine-type"),
            zone=await self._known("zone"),
            spot=None if spot is None else truth_of(spot),
        )

    async def look(self) -> Iterable[Notice]:
        """Waits for a change of what was seen."""
        query = f"?wait_for_change=true&timeout_sec={WAIT_S}&last_etag={quote(self._seen)}"
        patience_s = float(WAIT_S) if self._seen else 0.0
        reply = await self._ask("preempted" + (query if self._seen else ""), patience_s)
        if reply.status != 200:
            raise Unavailable(f"the metadata server answers {reply.status}")
        preempted = truth_of(reply.text)
        self._seen = reply.headers.get("etag", "")[:128]
        if not preempted:
            return ()
        if self._preempted is None:
            deadline_s = self._clocks.here() + PREEMPTION_S
            self._preempted = Notice(NoticeKind.SPOT, deadline_s)
        return (self._preempted,)

    async def _known(self, path: str) -> str | None:
        reply = await self._ask(path, 0.0)
        if reply.status == 404:
            return None
        if reply.status != 200:
            raise Unavailable(f"the metadata server answers {reply.status} for {path}")
        return name_of(reply.text.rpartition("/")[2], path)

    async def _ask(self, path: str, patience_s: float) -> Reply:
        reply = await self._service.ask(
            self._service.path(_ROOT + path), _HEADERS, patience_s=patience_s
        )
        if reply.headers.get("metadata-flavor") != "Google":
            raise Unavailable("whoever answers is no metadata server of Google's")
        return reply


def truth_of(text: str) -> bool:
    """Raises InvalidArgument."""
    if text not in ("TRUE", "FALSE"):
        raise InvalidArgument("a truth is TRUE or FALSE", field="preempted")
    return text == "TRUE"
