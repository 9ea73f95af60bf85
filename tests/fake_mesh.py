"""Stand-ins for heads, controller and tensor store, so that a router can be tried alone.

Tokens are a fixed function of (request, choice, position), so every stream can be compared; the
heads' pace, silence and deaths are the test's to decide. No model and no torch is needed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc
from shuntserve.tensorstore.v1 import tensorstore_pb2, tensorstore_pb2_grpc

from services.common import channels, wire
from services.common.errors import Cancelled, NotFound, ShuntError, StaleEpoch
from services.common.generation import (
    FinishReason,
    GenerationRequest,
    TokenLogprob,
    TokenSpan,
    finish_of,
)
from services.common.statuses import abort_with
from services.common.telemetry import parent_of
from services.controller import wire_demand
from services.controller.core.documents import DocumentSettings
from services.controller.core.shares import TenantShares
from services.controller.documents import DocumentRpcs, DocumentRuntime
from services.router.__main__ import RunningDoors, running
from services.router.settings import RouterSettings
from tests.tiny_model import MAX_POSITIONS, MODEL, model_files, tiny_tokenizer
from tests.waiting import until

HEARTBEAT_S = 0.05
REPLY = (
    "The capital of France is Paris. Über den Wolken: 東京 🚀🇫🇷 naïve café, and then some more "
    "words so that a stream has something to carry from one head to the next."
)


@dataclass
class Journaled:
    """What the fake controller holds of one generation."""

    request: GenerationRequest
    epoch: int
    head: int
    ids: list[list[int]]
    cancelled: bool = False
    stops: dict[int, int] = field(default_factory=dict)
    read: bool = True
    """A reader is attached, or has claimed it."""
    classes: list[str] = field(default_factory=list)
    """Numerics classes of the heads that had it."""


class FakeMesh:
    """The state that all stand-ins share, and the knobs a test turns."""

    def __init__(self, heads: int) -> None:
        self.tokenizer = tiny_tokenizer()
        eos = self.tokenizer.token_to_id("<|im_end|>")
        if eos is None:
            raise ValueError("the vocabulary has no <|im_end|>")
        self.eos: int = eos
        self.replies = [REPLY]
        self.limit = 1 << 30
        """No position at or behind this is sampled."""
        self.stuck_at: int | None = None
        """Of any answer, as many tokens leave nothing that its grammar allows."""
        self.burst = 1
        """Tokens of a choice in a frame."""
        self.token_s = 0.0
        self.phase = engine_pb2.PHASE_DECODE
        """What heads say of a generation that has no new token."""
        self.unlikely = False
        """The token that comes is never among the likeliest."""
        self.cached_tokens = 0
        """What heads find of a prompt that they read first."""
        self.prefixes: list[list[engine_pb2.WatchPrefixesResponse]] = [[] for _ in range(heads)]
        """What each head tells of what it has cached."""
        self.journal_lag = 0
        """The newest ids of a choice that the journal does not hold."""
        self.refusal: ShuntError | None = None
        """What heads answer to a new call."""
        self.journal: dict[str, Journaled] = {}
        self.looked: Counter[str] = Counter()
        """GetGeneration calls, by name."""
        self.deleted: set[str] = set()
        self.alive = [True] * heads
        self.numerics = ["fake"] * heads
        """The numerics class of each head."""
        self.silent = [False] * heads
        self.stalled = [False] * heads
        """What the controller thinks of each head; `stall` tells the routers."""
        self.addresses = [""] * heads
        self.calls: list[tuple[int, engine_pb2.GenerateRequest]] = []
        """Every Generate call: the head and its message."""
        self.detaches: list[engine_pb2.DetachRequest | engine_pb2.Detached] = []
        self.detach_calls = 0
        """Every Detach call."""
        self.hears = asyncio.Event()
        """Set unless heads are to answer a Detach call later."""
        self.hears.set()
        self.cancels: list[tuple[str, Any]] = []
        """Every Cancel call: head or controller, and its message."""
        self.traceparents: list[tuple[str, str]] = []
        self.request_ids: list[tuple[str, str]] = []
        self.demands: list[controller_pb2.ReportDemandRequest] = []
        """Every ReportDemand call."""
        self.shares = TenantShares()
        """What routers have of tenants' limits."""
        self.deals = asyncio.Event()
        """Set unless routers are to hear of their shares later."""
        self.deals.set()
        self.sampled = 0
        self.readers = 0
        """Streams open at heads."""
        self.controller_away = False
        self.model = MODEL
        """The version that every head runs."""
        self.templates: dict[str, str] = {}
        """Chat templates that versions have of their own, by digest."""
        self.described: list[str] = []
        """The digest each Describe call asked for."""
        self.store_fault: str = ""
        """away, damaged or nested: what the tensor store suffers from."""
        self.files = model_files(self.tokenizer)
        """Of the model, in the tensor store; changed before it serves."""
        self.others: list[controller_pb2.DeployedModel] = []
        """Models that are deployed and have no pipeline."""
        self.unusable = ""
        """Why no pipeline ever comes."""
        self.documents = documents(lease_s=1.0)
        """What routers keep at the controller."""
        self.version = 1
        self.routes_changed = asyncio.Event()
        self._servers: list[grpc.aio.Server] = []

    def ids_of(self, text: str) -> list[int]:
        """The ids of a text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def token(self, request: GenerationRequest, choice: int, position: int) -> int:
        """What a model would say: what is given, then the reply, shifted for sampled requests, then
        its end."""
        given = request.sampling.given_ids
        if position < len(given):
            return given[position]
        position -= len(given)
        reply = self.ids_of(self.replies[choice % len(self.replies)])
        shift = request.sampling.seed % 7 if request.sampling.temperature else 0
        ids = [*reply[shift:], self.eos]
        return ids[position % len(ids)]

    def expected(self, request: GenerationRequest, choice: int) -> list[int]:
        """All ids of one choice."""
        ids = [self.token(request, choice, k) for k in range(request.sampling.max_tokens)]
        end = self.end_of(request, ids)
        return ids[: end[0]] if end else ids

    def end_of(
        self, request: GenerationRequest, ids: Sequence[int]
    ) -> tuple[int, FinishReason] | None:
        """Length and reason of the first end among these ids of one choice."""
        if self.stuck_at is not None and len(ids) >= self.stuck_at:
            return self.stuck_at, FinishReason.GRAMMAR
        return finish_of(request, ids)

    def route(self, head: int) -> controller_pb2.Route:
        return controller_pb2.Route(
            pipeline_id=f"p{head}",
            formation_id=f"f{head}",
            incarnation=f"i{head}",
            address=self.addresses[head],
            throughput_tokens_per_s=100.0 + head,
            model=wire.model_to(self.model),
            max_positions=MAX_POSITIONS,
        )

    def deployed(self) -> list[controller_pb2.DeployedModel]:
        own = controller_pb2.DeployedModel(model=wire.model_to(self.model), unusable=self.unusable)
        return [own, *self.others]

    def routes(self) -> list[controller_pb2.Route]:
        serving = zip(self.alive, self.stalled, strict=True)
        return [self.route(i) for i, (lives, stalls) in enumerate(serving) if lives and not stalls]

    def stall(self, *stalled: bool) -> None:
        """The controller finds that these heads do not serve, or do again."""
        self.stalled[:] = stalled
        self.change_routes()

    def change_routes(self) -> None:
        """Tells the routers that routes are no longer what they were."""
        self.version += 1
        self.routes_changed.set()
        self.routes_changed = asyncio.Event()

    async def kill(self, head: int) -> None:
        """Ends a head without a word."""
        self.alive[head] = False
        await self._servers[head].stop(0)
        self.change_routes()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[FakeMesh]:
        servers = []
        for index in range(len(self.alive)):
            server, self.addresses[index] = _server()
            # of each service there is only what the router calls
            head = _Head(self, index)  # type: ignore[abstract]
            engine_pb2_grpc.add_EngineServiceServicer_to_server(head, server)
            servers.append(server)
        self._servers = list(servers)
        controller, self.controller_address = _server()
        routes = _Controller(self)  # type: ignore[abstract]
        controller_pb2_grpc.add_ControllerServiceServicer_to_server(routes, controller)
        store, self.store_address = _server()
        files = _Store(self)  # type: ignore[abstract]
        tensorstore_pb2_grpc.add_TensorStoreServiceServicer_to_server(files, store)
        servers += [controller, store]
        for server in servers:
            await server.start()
        try:
            yield self
        finally:
            await asyncio.gather(*(server.stop(0) for server in servers))

    @asynccontextmanager
    async def router(self, **settings: Any) -> AsyncIterator[RunningDoors]:
        """A router of this mesh that has heard of its pipelines."""
        chosen: dict[str, Any] = {
            "http_port": 0,
            "grpc_port": 0,
            "shutdown_grace_s": 0.2,
            "controller_address": self.controller_address,
            "tensorstore_address": self.store_address,
            **settings,
        }
        async with running(RouterSettings(**chosen)) as router:
            await until(lambda: router.router.catalogue.heard)
            yield router


def _server() -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server(options=channels.options(64 << 20))
    port = server.add_insecure_port("127.0.0.1:0")
    return server, f"127.0.0.1:{port}"


class _Head(engine_pb2_grpc.EngineServiceServicer):
    def __init__(self, mesh: FakeMesh, index: int) -> None:
        self._mesh = mesh
        self._index = index
        self._readers: dict[str, object] = {}

    async def Generate(self, message: Any, context: Any) -> AsyncIterator[Any]:
        mesh, index = self._mesh, self._index
        mesh.calls.append((index, message))
        mesh.traceparents.append(("head", _traceparent(context)))
        mesh.request_ids.append(("head", _metadata(context, "x-request-id")))
        mesh.readers += 1
        try:
            async for frame in self._frames(message, context):
                yield frame
        except ShuntError as error:
            await abort_with(context, error)
        finally:
            mesh.readers -= 1
            name = message.request.generation_id
            if name in mesh.journal and self._readers.get(name) is context:
                mesh.journal[name].read = False

    async def _frames(self, message: Any, me: object) -> AsyncIterator[Any]:
        mesh, index = self._mesh, self._index
        if mesh.refusal is not None:
            raise mesh.refusal
        request = wire.request_from(message.request)
        entry = self._admit(request, message)
        self._readers[request.generation_id] = me
        entry.read = True
        if entry.classes[-1:] != [mesh.numerics[index]]:
            entry.classes.append(mesh.numerics[index])
        lengths = wire.lengths_from(getattr(message, "from"), request.choices)
        sent = list(lengths)
        yield engine_pb2.GenerateResponse(
            accepted=engine_pb2.Accepted(
                formation_id=f"f{index}",
                incarnation=f"i{index}",
                numerics_class=mesh.numerics[index],
                lengths=wire.lengths_to([len(ids) for ids in entry.ids]),
            )
        )
        step = 0
        while True:
            if self._readers.get(request.generation_id) is not me:
                yield _closed(engine_pb2.CLOSE_REASON_SUPERSEDED, entry)
                return
            if entry.cancelled:
                yield _closed(engine_pb2.CLOSE_REASON_CANCELLED, entry)
                return
            if entry.epoch != message.epoch:
                yield _closed(engine_pb2.CLOSE_REASON_FENCED, entry)
                return
            step += 1
            spans = [] if mesh.silent[index] else self._sample(request, entry, sent)
            if spans:
                yield engine_pb2.GenerateResponse(
                    tokens=engine_pb2.Tokens(runs=wire.spans_to(spans), step=step)
                )
                await asyncio.sleep(mesh.token_s)
            elif all(self._finish(request, entry, choice) for choice in range(request.choices)):
                yield _closed(engine_pb2.CLOSE_REASON_FINISHED, entry)
                return
            else:
                await asyncio.sleep(HEARTBEAT_S)
                if not mesh.silent[index]:
                    yield engine_pb2.GenerateResponse(
                        progress=engine_pb2.Progress(step=step, phase=mesh.phase)
                    )

    def _admit(self, request: GenerationRequest, message: Any) -> Journaled:
        mesh = self._mesh
        if request.generation_id in mesh.deleted:
            raise Cancelled("deleted")
        entry = mesh.journal.get(request.generation_id)
        if entry is None:
            ids: list[list[int]] = [[] for _ in range(request.choices)]
            entry = Journaled(request, message.epoch, self._index, ids)
            mesh.journal[request.generation_id] = entry
        if message.epoch != entry.epoch or entry.head != self._index:
            raise StaleEpoch("another epoch", field="epoch")
        for run in message.held:
            held = entry.ids[run.choice]
            held[:] = [*run.ids, *held[len(run.ids) :]]
        return entry

    def _sample(
        self, request: GenerationRequest, entry: Journaled, sent: list[int]
    ) -> list[TokenSpan]:
        mesh, spans = self._mesh, []
        for choice, ids in enumerate(entry.ids):
            for _ in range(mesh.burst):
                if len(ids) >= mesh.limit or self._finish(request, entry, choice):
                    break
                ids.append(mesh.token(request, choice, len(ids)))
                mesh.sampled += 1
            if sent[choice] < len(ids):
                start, sent[choice] = sent[choice], len(ids)
                finish = self._finish(request, entry, choice)
                logprobs = _logprobs(request, ids, start, mesh.unlikely)
                cached = 0 if start else mesh.cached_tokens
                spans.append(TokenSpan(choice, start, tuple(ids[start:]), logprobs, finish, cached))
        return spans

    def _finish(
        self, request: GenerationRequest, entry: Journaled, choice: int
    ) -> FinishReason | None:
        if choice in entry.stops:
            return FinishReason.STOP
        end = self._mesh.end_of(request, entry.ids[choice])
        return end[1] if end else None

    async def WatchPrefixes(self, message: Any, context: Any) -> AsyncIterator[Any]:
        if message.formation_id != f"f{self._index}":
            await abort_with(context, NotFound("another formation", field="formation_id"))
        told, news = 0, self._mesh.prefixes[self._index]
        while True:
            for one in news[told:]:
                yield one
            told = len(news)
            await asyncio.sleep(HEARTBEAT_S)

    async def Detach(self, message: Any, context: Any) -> Any:
        self._mesh.detaches += [message, *message.more]
        self._mesh.detach_calls += 1
        await self._mesh.hears.wait()
        return engine_pb2.DetachResponse()

    async def Cancel(self, message: Any, context: Any) -> Any:
        self._mesh.cancels.append(("head", message))
        _end(self._mesh, message)
        return engine_pb2.CancelResponse()


def _logprobs(
    request: GenerationRequest, ids: Sequence[int], start: int, unlikely: bool
) -> tuple[TokenLogprob, ...]:
    top, first = request.sampling.top_logprobs, int(unlikely)
    if top is None:
        return ()
    return tuple(
        TokenLogprob(
            -0.5 - 9 * first,
            tuple(((token + i) % 256, -0.5 - i) for i in range(first, first + top)),
        )
        for token in ids[start:]
    )


def _end(mesh: FakeMesh, message: Any) -> None:
    entry = mesh.journal.get(message.generation_id)
    if entry is None:
        return
    if message.HasField("choice"):
        entry.stops[message.choice] = len(entry.ids[message.choice])
    else:
        entry.cancelled = True


def _closed(reason: engine_pb2.CloseReason.ValueType, entry: Journaled) -> Any:
    lengths = wire.lengths_to([len(ids) for ids in entry.ids])
    return engine_pb2.GenerateResponse(closed=engine_pb2.Closed(reason=reason, lengths=lengths))


def _traceparent(context: Any) -> str:
    value = _metadata(context, "traceparent")
    return value if parent_of(value) is not None else ""


def _metadata(context: Any, name: str) -> str:
    return str(dict(context.invocation_metadata() or ()).get(name, ""))


class _Journal:
    """Takes everything."""

    async def write(self, items: Sequence[Any], *, fsync: bool = False) -> None: ...

    async def settled(self) -> None: ...


def documents(lease_s: float) -> DocumentRuntime:
    """None yet, and a journal that takes everything."""
    return DocumentRuntime(
        DocumentSettings(lease_s=lease_s),
        _Journal(),  # type: ignore[arg-type]
        {},
        clock=time.monotonic,
        wall_clock=time.time,
    )


def _told(name: str) -> Any:
    """An RPC about documents whose refusals are told as a server's interceptor tells them."""
    rpc = getattr(DocumentRpcs, name)

    async def answer(self: Any, message: Any, context: Any) -> Any:
        if self._mesh.controller_away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        try:
            return await rpc(self, message, context)
        except ShuntError as error:
            await abort_with(context, error)
            raise AssertionError from None

    return answer


class _Controller(DocumentRpcs, controller_pb2_grpc.ControllerServiceServicer):
    PutDocument = _told("PutDocument")
    GetDocument = _told("GetDocument")
    ListDocuments = _told("ListDocuments")
    DeleteDocument = _told("DeleteDocument")
    ClaimDocument = _told("ClaimDocument")
    RenewDocument = _told("RenewDocument")

    def __init__(self, mesh: FakeMesh) -> None:
        self._mesh = mesh

    @property
    def _documents(self) -> DocumentRuntime:  # type: ignore[override]
        return self._mesh.documents

    async def WatchRoutes(self, message: Any, context: Any) -> AsyncIterator[Any]:
        mesh = self._mesh
        while True:
            changed = mesh.routes_changed
            yield controller_pb2.WatchRoutesResponse(
                version=mesh.version, routes=mesh.routes(), deployed=mesh.deployed()
            )
            await changed.wait()

    async def Resume(self, message: Any, context: Any) -> Any:
        mesh = self._mesh
        mesh.traceparents.append(("controller", _traceparent(context)))
        alive = [index for index, alive in enumerate(mesh.alive) if alive]
        if mesh.controller_away or not alive:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no pipeline")
        if message.generation_id in mesh.deleted:
            await context.abort(grpc.StatusCode.CANCELLED, "deleted")
        request = wire.request_from(message.request)
        entry = mesh.journal.get(message.generation_id)
        if entry is None:
            ids: list[list[int]] = [[] for _ in range(request.choices)]
            entry = mesh.journal[message.generation_id] = Journaled(request, 0, 0, ids)
        if entry.cancelled:
            await context.abort(grpc.StatusCode.CANCELLED, "cancelled")
        kept = [ids[: max(0, len(ids) - mesh.journal_lag)] for ids in entry.ids]
        for run in message.held:
            kept[run.choice] = max(kept[run.choice], list(run.ids), key=len)
        entry.epoch = max(entry.epoch, message.last_epoch) + 1
        entry.head, entry.ids = alive[entry.epoch % len(alive)], kept
        return controller_pb2.ResumeResponse(
            epoch=entry.epoch,
            head=mesh.route(entry.head),
            base=self._runs(entry),
            finished=False,
        )

    def _runs(self, entry: Journaled) -> list[Any]:
        return wire.spans_to(
            TokenSpan(
                choice,
                0,
                tuple(ids),
                _logprobs(entry.request, ids, 0, self._mesh.unlikely),
                FinishReason.GRAMMAR if len(ids) == self._mesh.stuck_at else None,
                self._mesh.cached_tokens,
            )
            for choice, ids in enumerate(entry.ids)
            if ids
        )

    async def Cancel(self, message: Any, context: Any) -> Any:
        if self._mesh.controller_away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        self._mesh.cancels.append(("controller", message))
        self._mesh.request_ids.append(("controller", _metadata(context, "x-request-id")))
        entry = self._mesh.journal.get(message.generation_id)
        if entry and message.HasField("tenant") and entry.request.tenant != message.tenant:
            await abort_with(context, NotFound("no such generation", field="generation_id"))
        finished = controller_pb2.GENERATION_STATE_FINISHED
        if entry is None or self._view(entry).state != finished:
            _end(self._mesh, message)
        return controller_pb2.CancelResponse()

    async def ClaimGeneration(self, message: Any, context: Any) -> Any:
        mesh = self._mesh
        if mesh.controller_away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        for entry in mesh.journal.values():
            if entry.request.ask_digest == message.ask_digest and not entry.read:
                entry.read = True
                return controller_pb2.ClaimGenerationResponse(generation=self._view(entry))
        await abort_with(context, NotFound("nothing is unread", field="ask_digest"))
        raise AssertionError

    async def ClaimBackground(self, message: Any, context: Any) -> Any:
        """What has no reader; whoever claims it reads it."""
        claimed = []
        for name, entry in self._mesh.journal.items():
            ends = (self._mesh.end_of(entry.request, ids) for ids in entry.ids)
            done = entry.cancelled or all(ends)
            if entry.request.runs_unread and not (entry.read or done):
                entry.read = True
                claimed.append(name)
        return controller_pb2.ClaimBackgroundResponse(generation_ids=claimed[: message.at_most])

    async def DeleteGeneration(self, message: Any, context: Any) -> Any:
        if self._mesh.controller_away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        self._mesh.deleted.add(message.generation_id)
        entry = self._mesh.journal.pop(message.generation_id, None)
        if entry is not None:
            entry.cancelled = True
        return controller_pb2.DeleteGenerationResponse()

    async def ReportDemand(self, message: Any, context: Any) -> Any:
        self._mesh.demands.append(message)
        await self._mesh.deals.wait()
        shares = self._mesh.shares.reported(
            message.router_id,
            message.routers,
            wire_demand.tenants_from(message),
            time.monotonic(),
        )
        return wire_demand.shares_to(shares)

    async def GetGeneration(self, message: Any, context: Any) -> Any:
        self._mesh.looked[message.generation_id] += 1
        entry = self._mesh.journal.get(message.generation_id)
        if entry is None:
            await abort_with(context, NotFound("no such generation", field="generation_id"))
            raise AssertionError
        return self._view(entry)

    def _view(self, entry: Journaled) -> Any:
        mesh = self._mesh
        kept = [ids[: max(0, len(ids) - mesh.journal_lag)] for ids in entry.ids]
        journaled = Journaled(entry.request, entry.epoch, entry.head, kept)
        done = all(
            mesh.end_of(entry.request, ids) or choice in entry.stops
            for choice, ids in enumerate(kept)
        )
        state = controller_pb2.GENERATION_STATE_OPEN
        if done:
            state = controller_pb2.GENERATION_STATE_FINISHED
        if entry.cancelled:
            state = controller_pb2.GENERATION_STATE_CANCELLED
        return controller_pb2.GetGenerationResponse(
            request=wire.request_to(entry.request),
            runs=self._runs(journaled),
            epoch=entry.epoch,
            head=mesh.route(entry.head) if mesh.alive[entry.head] and not done else None,
            state=state,
            numerics_classes=entry.classes,
        )


class _Store(tensorstore_pb2_grpc.TensorStoreServiceServicer):
    def __init__(self, mesh: FakeMesh) -> None:
        self._mesh = mesh
        self._objects: dict[str, bytes] = {}

    def _manifest(self, digest: str) -> bytes:
        files = dict(self._mesh.files)
        if digest in self._mesh.templates:
            files["chat_template.jinja"] = self._mesh.templates[digest].encode()
        by_name = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        self._objects |= {by_name[name]: data for name, data in files.items()}
        config = {
            "model_type": "llama",
            "max_position_embeddings": MAX_POSITIONS,
            "vocab_size": self._mesh.tokenizer.get_vocab_size(),
        }
        entries = {n: {"digest": by_name[n], "size": len(data)} for n, data in files.items()}
        return json.dumps({"config": config, "files": entries}).encode()

    async def Describe(self, message: Any, context: Any) -> Any:
        if self._mesh.store_fault == "away":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        faulty = {"damaged": b"{}", "nested": b"[" * 100_000}
        self._mesh.described.append(message.model.digest)
        manifest = faulty.get(self._mesh.store_fault) or self._manifest(message.model.digest)
        return tensorstore_pb2.DescribeResponse(manifest=manifest)

    async def Read(self, message: Any, context: Any) -> AsyncIterator[Any]:
        data = self._objects[message.digest][message.start : message.start + message.length]
        for start in range(0, len(data), 1 << 20):
            yield tensorstore_pb2.ReadResponse(data=data[start : start + (1 << 20)])
