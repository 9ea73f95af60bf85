"""Clouds' metadata services as their documentation has them, and all that may be wrong with one."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

TOKEN = "x-aws-ec2-metadata-token"
TTL = "x-aws-ec2-metadata-token-ttl-seconds"


class Fake(ABC):
    """Answers as it should, unless it is told what is wrong with it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """Method and path of each question."""
        self.wrong: Callable[[str], Response | None] | None = None
        """By path; None where the right answer is given."""
        self.hangs = False
        self._over = asyncio.Event()

    def close(self) -> None:
        """Nobody is kept waiting any more."""
        self._over.set()

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self._answer, methods=["GET", "PUT"])])

    async def _answer(self, request: Request) -> Response:
        path = request.url.path.rstrip("/")
        self.asked.append(f"{request.method} {path}")
        if self.hangs:
            await self._over.wait()
        answer = self.wrong(path) if self.wrong is not None else None
        return answer or await self.right(request, path)

    @abstractmethod
    async def right(self, request: Request, path: str) -> Response:
        """As the cloud's own service answers."""


def utc(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class FakeEc2(Fake):
    """IMDSv2: tokens that end, 401 without one, 404 until there is something to say."""

    def __init__(self, instance_id: str = "i-0123456789abcdef0", *, spot: bool = True) -> None:
        super().__init__()
        self.longest_ttl_s = 21_600.0
        """Tokens end by then, whatever they were asked for."""
        self.tokens: dict[str, float] = {}
        self.told: dict[str, str] = {
            "instance-id": instance_id,
            "instance-type": "g6.xlarge",
            "instance-life-cycle": "spot" if spot else "on-demand",
            "local-ipv4": "127.0.0.1",
            "placement/availability-zone": "us-east-1a",
            "placement/availability-zone-id": "use1-az4",
            "placement/region": "us-east-1",
        }

    def mark(self, in_s: float, action: str = "terminate") -> None:
        """The market takes the instance back."""
        at = utc(time.time() + in_s)
        self.told["spot/instance-action"] = json.dumps({"action": action, "time": at})
        self.told["spot/termination-time"] = at

    def recommend(self) -> None:
        """The market says that it is likely to."""
        at = json.dumps({"noticeTime": utc(time.time())})
        self.told["events/recommendations/rebalance"] = at

    async def right(self, request: Request, path: str) -> Response:
        now_s = time.monotonic()
        if path == "/latest/api/token":
            asked = request.headers.get(TTL, "")
            if "x-forwarded-for" in request.headers:
                return PlainTextResponse("", 403)
            if request.method != "PUT" or not asked.isdecimal() or not 1 <= int(asked) <= 21_600:
                return PlainTextResponse("", 400)
            token = secrets.token_urlsafe(40)
            self.tokens[token] = now_s + min(float(asked), self.longest_ttl_s)
            return PlainTextResponse(token, headers={TTL: asked})
        if self.tokens.get(request.headers.get(TOKEN, ""), 0.0) <= now_s:
            return PlainTextResponse("", 401)
        said = self.told.get(path.removeprefix("/latest/meta-data/"))
        return PlainTextResponse("" if said is None else said, 404 if said is None else 200)


class FakeGcp(Fake):
    """The metadata server: answers with its header, and waits for a change when it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.preempted = asyncio.Event()
        self.flavour = "Google"
        self.told = {
            "id": "4711",
            "machine-type": "projects/12/machineTypes/g2-standard-4",
            "zone": "projects/12/zones/europe-west4-a",
            "scheduling/preemptible": "TRUE",
        }

    async def right(self, request: Request, path: str) -> Response:
        if request.headers.get("metadata-flavor") != "Google":
            return PlainTextResponse("", 403)
        query, name = request.query_params, path.removeprefix("/computeMetadata/v1/instance/")
        headers = {"Metadata-Flavor": self.flavour}
        if name != "preempted":
            said = self.told.get(name)
            return PlainTextResponse(said or "", 404 if said is None else 200, headers)
        if query.get("wait_for_change") == "true" and query.get("last_etag") == self._etag():
            try:
                async with asyncio.timeout(float(query["timeout_sec"])):
                    await self.preempted.wait()
            except TimeoutError:
                pass
        text = "TRUE" if self.preempted.is_set() else "FALSE"
        return PlainTextResponse(text, headers=headers | {"ETag": self._etag()})

    def close(self) -> None:
        super().close()
        self.preempted.set()

    def _etag(self) -> str:
        return "b2" if self.preempted.is_set() else "a1"


class FakeAzure(Fake):
    """The instance and its scheduled events."""

    def __init__(self) -> None:
        super().__init__()
        self.compute = {
            "name": "vm_7",
            "vmId": "02aab8a4-74ef-476e-8182-f6d2ba4166a6",
            "vmSize": "Standard_NC24ads_A100_v4",
            "location": "westeurope",
            "zone": "2",
            "priority": "Spot",
        }
        self.events: list[dict[str, object]] = []

    def schedule(self, kind: str, in_s: float, vm: str = "vm_7") -> None:
        at = format_datetime(datetime.fromtimestamp(time.time() + in_s, UTC), usegmt=True)
        self.events.append(
            {
                "EventId": secrets.token_hex(8),
                "EventType": kind,
                "ResourceType": "VirtualMachine",
                "Resources": [vm],
                "EventStatus": "Scheduled",
                "NotBefore": at,
                "Description": "",
                "EventSource": "Platform",
                "DurationInSeconds": -1,
            }
        )

    async def right(self, request: Request, path: str) -> Response:
        if request.headers.get("metadata") != "true" or "api-version" not in request.query_params:
            return PlainTextResponse("", 400)
        if path == "/metadata/instance/compute":
            return PlainTextResponse(json.dumps(self.compute))
        if path == "/metadata/scheduledevents":
            return PlainTextResponse(json.dumps({"DocumentIncarnation": 1, "Events": self.events}))
        return PlainTextResponse("", 404)


class _Server(uvicorn.Server):
    """One that leaves the signals of its process alone."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(fake: Fake) -> AsyncIterator[str]:
    """The URL of a metadata service, for as long as the block lasts."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            fake.app(), log_config=None, lifespan="off", timeout_graceful_shutdown=1
        )
        server = _Server(config)
        task = asyncio.create_task(server.serve(sockets=[bound]))
        try:
            while not server.started:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            fake.close()
            server.should_exit = True
            await task
