"""What both doors share: whom it admits, where each request goes, and who reads what."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from types import NoneType

from services.common import logs
from services.common.demand import Demand
from services.common.errors import (
    AlreadyExists,
    Cancelled,
    InvalidArgument,
    ResourceExhausted,
    ShuntError,
    Unavailable,
)
from services.common.exchange import DeployedModel, GenerationView, Route
from services.common.fair_queue import lane_of
from services.common.generation import GenerationRequest, ModelRef
from services.common.tenants import NOBODY, Tenant
from services.router import metrics
from services.router.ask import Ask, Drawn
from services.router.cancels import Cancels
from services.router.catalogue import ModelCatalogue
from services.router.controller import ControllerClient
from services.router.core.admission import Admission
from services.router.core.balancer import Balancer
from services.router.core.demand import DemandCounter
from services.router.core.dispatching import Sending, Waiter
from services.router.core.follower import Follower
from services.router.core.follower_settings import FollowerSettings
from services.router.core.hearing import Hearing
from services.router.core.prediction import Comer
from services.router.core.quotas import Quotas
from services.router.core.reading import Reading
from services.router.core.transcript import Position, Transcript
from services.router.dispatch import Dispatch
from services.router.heads import Heads
from services.router.held import Held
from services.router.metrics import TenantSeries
from services.router.model import ServedModel
from services.router.models import Models, check_may_use
from services.router.pipelines import PipelineTable
from services.router.resolving import check_same, prompt_of, resolve
from services.router.session import Session
from services.router.settings import RouterSettings

_log = logging.getLogger(__name__)
TICK_S = 0.25
REPORT_AGAIN_S = 0.2
TURNS_TO_LEAVE = 2
"""Of the event loop: a new request's call is made in the first, and goes out in the second. What
else is to be done for it is done behind them, while its head is at work."""
_NO_MORE_COMES = (NoneType, Cancelled, InvalidArgument, ResourceExhausted)
"""What a session ends with whose generation has ended too, or never began."""
_NOT_KNOWN_YET = ""
"""The model of a generation that is looked for."""


class _RefusalsCounted:
    """Of requests that are refused for the load, by what they lack."""

    def __init__(self, lack: str) -> None:
        self._lack = lack

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, ResourceExhausted):
            metrics.REFUSED.labels(self._lack).inc()


_FOR_A_PLACE, _FOR_TIME = _RefusalsCounted("place"), _RefusalsCounted("time")


def _least(ask: Ask) -> Comer:
    """What is known of a request before its prompt is read."""
    tenant, lane = ask.tenant, lane_of(ask.tenant.priority)
    return Comer(tenant.name, tenant.weight, lane, ask.choices, rows=1, positions=1)


class Router:
    """Starts sessions and keeps their clock."""

    def __init__(
        self,
        settings: RouterSettings,
        controller: ControllerClient,
        heads: Heads,
        catalogue: ModelCatalogue,
    ) -> None:
        self.settings = settings
        self.catalogue = catalogue
        self.models = Models(catalogue, settings, self._check_goes_on)
        self._controller = controller
        self._heads = heads
        self._balancer = Balancer()
        self._hearing = Hearing(2 * TICK_S)
        self._pipelines = PipelineTable()
        self._dispatch = Dispatch(self._balancer, heads, time.monotonic)
        self._tenants = TenantSeries(settings.metrics_tenants)
        self._cancels = Cancels(controller, heads, settings.recover_s)
        self._follower_settings = FollowerSettings(
            silence_s=settings.silence_s,
            progress_s=settings.progress_s,
            reach_s=settings.reach_s,
            recover_s=settings.recover_s,
            resume_timeout_s=settings.resume_timeout_s,
        )
        self._sessions: set[Session] = set()
        self.held = Held(controller, self._cancels, settings, self._following)
        self._admission = Admission(settings.max_streams)
        """Places of sessions, and of requests that have none yet."""
        self._demand = DemandCounter()
        self.quotas = Quotas()
        self._knows_shares = False
        """Its shares of tenants' limits, or that nobody tells them."""
        self._incarnation = secrets.token_hex(16)
        self._started_s = time.monotonic()
        self._told: Mapping[str, Demand] = {}
        """What the controller was told last of what is asked for."""
        self._news = asyncio.Event()
        """Somebody asks for what has no pipeline, or for what the controller takes to be quiet."""
        self._fewer = asyncio.Event()
        """Set when somebody is served no longer."""
        self._leaving = self._refusing = False
        self.stopping = False

    async def run(self) -> None:
        """Follows the routes and ticks the sessions, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tick())
            tasks.create_task(self.models.preload())
            tasks.create_task(self._report())
            tasks.create_task(
                self._controller.watch_routes(self.settings.router_id, self.update_routes)
            )

    def update_routes(
        self,
        routes: Sequence[Route],
        handing_over: Sequence[str],
        deployed: Sequence[DeployedModel],
    ) -> None:
        """Replaces the routes; readers of a head that serves no more hear of it at once."""
        self._balancer.update(routes, handing_over)
        self._hearing.keep((*(route.formation_id for route in routes), *handing_over))
        self._pipelines.update(routes)
        self.catalogue.update(routes, deployed)
        self._dispatch.update(routes)
        self._wake_waiting()
        self._tick_sessions()

    def _wake_waiting(self) -> None:
        self.models.look()
        self._dispatch.look()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._tick_sessions()

    def _tick_sessions(self) -> None:
        now_s, settings = time.monotonic(), self.settings
        self._pipelines.tick(now_s)
        self._hearing.look(now_s)
        for session in list(self._sessions):
            session.tick(now_s, settings.comment_s, settings.unread_s, settings.write_timeout_s)

    async def _report(self) -> None:
        """Tells the controller what is asked for, at once where it is asked for in vain, or was
        told to be quiet: a quiet model goes to sleep."""
        while True:
            self._news.clear()
            self._told, measured_s = self._demand.counts(), time.monotonic() - self._started_s
            try:
                self.quotas.shares = await self._controller.report_demand(
                    self.settings.router_id,
                    self._incarnation,
                    measured_s,
                    self._told,
                    self.quotas.demands(time.monotonic()),
                    self.quotas.shares.routers,
                )
            except ShuntError as error:
                _log.debug("demand not told", extra={"reason": error.message})
                await asyncio.sleep(REPORT_AGAIN_S)
            self._knows_shares = True
            with suppress(TimeoutError):
                async with asyncio.timeout(self.settings.report_s):
                    await self._news.wait()

    @property
    def ready(self) -> bool:
        """New requests are welcome, and some pipeline takes them."""
        return self.why_not_ready is None

    @property
    def why_not_ready(self) -> ShuntError | None:
        """What it would be refused with; None when it is ready."""
        if self._leaving or self.stopping:
            return Unavailable("this router stops")
        served = {model.model_id for model in self.served()}
        reasons = [
            self.catalogue.why_not(model)
            if model.model_id in served
            else self.models.no_pipeline(model.model_id)
            for model in self.catalogue.deployed()
        ]
        if not reasons:
            return self.models.no_pipeline("")
        if None not in reasons:
            return reasons[0]
        unknown = Unavailable("its share of tenants' limits is not known yet")
        return None if self._knows_shares else unknown

    @property
    def streams(self) -> int:
        """Generations followed now."""
        return len(self._sessions)

    def _following(self, generation_id: str) -> list[Session]:
        return [session for session in self._sessions if session.generation_id == generation_id]

    def live_waits(self, batches: Set[Session], longest_s: float) -> bool:
        """Somebody waits longer than that for a first token, who is none of these."""
        now_s = time.monotonic()
        return any(session.waits_s(now_s) > longest_s for session in self._sessions - batches)

    def served(self) -> list[ModelRef]:
        """Models that may be asked for: each has a pipeline, or gets one when it is."""
        routes = [route.model for route in self._balancer.models()]
        asleep = self.catalogue.asleep()
        return [*routes, *(model for model in asleep if model not in routes)]

    async def generate(self, ask: Ask) -> Session:
        """Starts a generation, or joins the one of that name if it is the same, or the one that
        the client's first ask began.

        Raises InvalidArgument, NotFound, AlreadyExists, ResourceExhausted, Unavailable.
        """
        asked_s = time.monotonic()
        ask.check(self.settings.max_choices)
        check_may_use(ask.tenant, ask.model)
        created_unix_s = int(time.time())
        generation_id = f"g{created_unix_s:08x}{secrets.token_hex(12)}"
        with (
            self._admitted(ask.model, ask.tenant),
            self._metered(ask, ask.generation_id or generation_id),
        ):
            view = await self.held.begun_before(ask)
            if view is not None:
                return await self._join(ask, view)
            model = await self.models.named(ask.model)
            by_s = self._deadline_s(ask, asked_s)
            with _FOR_TIME:
                now_s = time.monotonic()
                self._dispatch.core.check(ask.model, _least(ask), by_s, now_s, ask.prompt_bytes)
            drawn = Drawn(generation_id, secrets.randbits(63), created_unix_s)
            request = await resolve(ask, model, self.models.limits(ask.model, model), drawn)
            self.quotas.reserve(ask.tenant, request, time.monotonic())
            with _FOR_TIME:
                sending = await self._sending(Waiter(request, by_s, ask.prompt_bytes))
            route, holder, sent_s = sending.route, sending.holder, time.monotonic()
            if route.model != request.model:  # another version is served since
                model, holder = await self.models.load(route.model), None
                request = await resolve(ask, model, self.models.limits(ask.model, model), drawn)
            session = self._session(request, model, None)
        # A name that somebody took meanwhile is the controller's to know.
        # What runs unread is the controller's before it is anybody's, for its client may leave now.
        journaled_first = bool(ask.generation_id) or request.runs_unread
        session.begin(
            None if journaled_first else route,
            asked_s,
            lambda: self._first_token(sending, time.monotonic() - sent_s),
            holder,
        )
        try:
            for _ in range(0 if journaled_first else TURNS_TO_LEAVE):
                await asyncio.sleep(0)
        except BaseException:
            session.close()
            raise
        finally:
            self._count(request, sending.found, sent_s - asked_s)
        return session

    def _count(self, request: GenerationRequest, found: int, waited_s: float) -> None:
        """A new generation began, for which its pipeline has computed so many positions."""
        model_id, series = request.model.model_id, metrics.of_model(request.model.model_id)
        series.route_wait_s.observe(waited_s)
        series.prefix_found.inc(found)
        self._tenants.asked(request.tenant)
        self._demand.asked(model_id, request.prompt_tokens, request.choices)

    def _deadline_s(self, ask: Ask, asked_s: float) -> float | None:
        """When the first token is wanted."""
        within_s = ask.deadline_s or self.settings.deadline_s.get(ask.tenant.priority)
        return None if within_s is None else asked_s + within_s

    def _first_token(self, sending: Sending, took_s: float) -> None:
        """What was said of it is compared with what came."""
        route, said_s = sending.route, sending.first_token_s
        if said_s:
            ratios = metrics.of_model(route.model.model_id).first_token_over_predicted
            ratios.observe(took_s / said_s)
            self._dispatch.core.predictor.measured(route.formation_id, said_s, took_s)

    async def read(self, ask: Ask) -> tuple[list[int], ServedModel]:
        """The ids of an ask's prompt, and the model that they are of. Raises InvalidArgument,
        NotFound, Unavailable."""
        ask.check_turns()
        check_may_use(ask.tenant, ask.model)
        with self._admitted(ask.model, ask.tenant):
            model = await self.models.named(ask.model)
            ask.check_size(
                self.models.limits(ask.model, model).max_positions, model.longest_piece_bytes
            )
            return (await prompt_of(ask, model, int(time.time()))).ids, model

    async def model(self, name: str, tenant: Tenant) -> ServedModel:
        """One that is served. Raises NotFound, Unavailable."""
        check_may_use(tenant, name)
        with self._admitted(name, NOBODY):
            return await self.models.named(name)

    async def _join(self, ask: Ask, view: GenerationView) -> Session:
        """Asking twice is asking once: what the first ask left to chance, to the clock and to the
        pipelines of its time is taken from what is held."""
        held = view.request
        if held.model.model_id != ask.model or held.tenant != ask.tenant.name:
            raise AlreadyExists("another request has this id", field="generation_id")
        model = await self.models.load(held.model)
        if ask.generation_id:
            await check_same(ask, held, model, self.models.limits(ask.model, model))
        metrics.JOINED.labels(held.model.model_id).inc()
        session = self._session(held, model, None)
        session.rejoin(view)
        return session

    async def resume(
        self, generation_id: str, after: str | None, tenant: Tenant | None = NOBODY
    ) -> Session:
        """Goes on behind an event, or from the start; returns once the reader's position is
        reached. Without a tenant it is the mesh that reads, whosever it is.

        Raises InvalidArgument for a name or an event that cannot be, NotFound, Expired,
        OutOfRange and FailedPrecondition for an event that does not belong, Unavailable.
        """
        position = Position.parse(after) if after else None
        with self._admitted(_NOT_KNOWN_YET, tenant or NOBODY):
            view = await self.held.view(generation_id, tenant)
            if position is not None and after:
                position = Position.parse(after, view.request.choices)
            model = await self.models.load(view.request.model)
            if tenant is not None:
                self.quotas.check_stream(tenant, generation_id)
            session = self._session(view.request, model, position)
        session.resumable = True
        if tenant is None:
            session.read_for_nobody()
        try:
            session.rejoin(view)
            while not (session.transcript.caught_up or session.ended):
                await session.wake.wait()
                session.wake.clear()
        except BaseException:
            session.close()
            raise
        session.wake.set()
        if session.error is not None and not session.transcript.caught_up:
            session.close()
            raise session.error
        return session

    def leave(self) -> None:
        """Is not ready any more; whoever asks is served all the same."""
        self._leaving = True

    def refuse(self) -> None:
        """Sends whoever comes from now on elsewhere."""
        self._refusing = True

    async def idle(self) -> None:
        """Returns when nobody is served."""
        while self._admission.total:
            self._fewer.clear()
            await self._fewer.wait()

    async def close(self) -> None:
        """Lets every reader go; each can resume at another router."""
        self.stopping = True
        self._wake_waiting()
        for session in list(self._sessions):
            session.fail(Unavailable("this router stops; resume at another one"))
        await self._dispatch.close()
        await self._cancels.close()
        await self._heads.close()

    @contextmanager
    def _admitted(self, model_id: str, tenant: Tenant) -> Iterator[None]:
        """Counts a request that has no session yet."""
        self._check_goes_on()
        if self._refusing:
            raise Unavailable("this router stops; ask another one")
        with _FOR_A_PLACE:
            self._admission.check(model_id, (one.model_id for one in self.catalogue.deployed()))
            self._admission.check_tenant(tenant.name, tenant.weight)
        self._admission.take(model_id, tenant.name, tenant.weight)
        try:
            yield
        finally:
            self._admission.leave(model_id, tenant.name)
            self._fewer.set()

    @contextmanager
    def _metered(self, ask: Ask, generation_id: str) -> Iterator[None]:
        """Counts a request against its tenant's limits; one that comes to nothing takes no
        tokens."""
        quotas = self.quotas
        quotas.ask(ask.tenant, time.monotonic())
        quotas.check_stream(ask.tenant, generation_id)
        quotas.opened(ask.tenant.name, generation_id)
        try:
            yield
        except BaseException:
            quotas.settle(generation_id, 0, time.monotonic())
            raise
        finally:
            quotas.closed(ask.tenant.name, generation_id)

    def _check_goes_on(self) -> None:
        if self.stopping:
            raise Unavailable("this router stops; ask another one")

    async def _sending(self, waiter: Waiter) -> Sending:
        """Where a new generation goes; waits for a pipeline where there is none for it."""
        request, now_s = waiter.request, time.monotonic()
        model_id = request.model.model_id
        sending = self._dispatch.core.send(waiter, now_s)
        if sending is None:
            until_s = now_s + self.settings.route_wait_s
            if waiter.by_s is not None:
                until_s = min(until_s, waiter.by_s)

            def check() -> None:
                self._check_goes_on()
                self.models.check_usable(model_id)

            with self._demand.waiting(model_id), metrics.WAITING.track_inprogress():
                self._news.set()
                sending = await self._dispatch.wait(waiter, until_s, check)
        if sending is None:
            sending = self._dispatch.core.send(waiter, time.monotonic(), anyway=True)
        if sending is None:
            raise self.models.no_pipeline(model_id)
        return sending

    def _session(
        self, request: GenerationRequest, model: ServedModel, after: Position | None
    ) -> Session:
        self._check_goes_on()  # it may have stopped while the request was being made
        logs.about(generation_id=request.generation_id)
        follower = Follower(request, self._follower_settings, secrets.token_hex(8))
        transcript = Transcript(request, follower.runs, model.vocabulary_of(request), after)
        session = Session(
            Reading(
                follower,
                transcript,
                self._balancer,
                self._hearing,
                max_unread_bytes=self.settings.max_unread_bytes,
            ),
            heads=self._heads,
            controller=self._controller,
            cancels=self._cancels,
            pipelines=self._pipelines,
            tenants=self._tenants,
            clock=time.monotonic,
            closed=self._closed,
        )
        self._sessions.add(session)
        self._admission.take(session.model_id, request.tenant, request.tenant_weight)
        self.quotas.opened(request.tenant, request.generation_id)
        metrics.of_model(session.model_id).streams.inc()
        self._demand.opened(session.model_id)
        told = self._told.get(session.model_id)
        if told is None or not told.open or not self._balancer.has(session.model_id):
            self._news.set()
        return session

    def _closed(self, session: Session) -> None:
        name = session.model_id
        if session in self._sessions:
            self._sessions.discard(session)
            self._admission.leave(name, session.request.tenant)
            self.quotas.closed(session.request.tenant, session.generation_id)
            metrics.of_model(name).streams.dec()
            self._demand.closed(name)
            self._dispatch.look()
        if session.ended and isinstance(session.error, _NO_MORE_COMES):
            usage = session.transcript.usage
            used = usage.prompt_tokens + usage.completion_tokens
            self.quotas.settle(session.generation_id, used, time.monotonic())
        if session.ended and session.error is None:
            tokens = session.transcript.usage.completion_tokens
            self._demand.answered(name, tokens, session.request.choices)
        self._fewer.set()
