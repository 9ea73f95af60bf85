"""The gRPC door: the same generations as over HTTP."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import grpc
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import logs, telemetry, wire
from services.common.errors import InvalidArgument, ShuntError, Unavailable
from services.common.generation import GenerationKind
from services.model.chat import Message
from services.router.ask import MAX_PROMPT_IDS, ROLES, Ask
from services.router.catalogue import ModelCatalogue
from services.router.core.body_budget import BodyBudget
from services.router.core.transcript import Delta
from services.router.http.errors import code_of
from services.router.router import Router
from services.router.session import Session

Context = grpc.aio.ServicerContext[Any, Any]


class RouterService(router_pb2_grpc.RouterServiceServicer):
    """Parses, calls the router, builds replies."""

    def __init__(self, router: Router, bodies: BodyBudget) -> None:
        self._router = router
        self._bodies = bodies

    @contextlib.contextmanager
    def _budgeted(self, request: router_pb2.GenerateRequest) -> Iterator[None]:
        """Holds a request's share of what all bodies, of both doors, may hold. Raises Unavailable
        when there is no room."""
        size_bytes = request.ByteSize()
        if not self._bodies.take(size_bytes):
            raise Unavailable("too many bytes of requests are held already")
        try:
            yield
        finally:
            request.Clear()  # whoever made the call keeps the message for as long as it streams
            self._bodies.give_back(size_bytes)

    async def Generate(
        self, request: router_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[router_pb2.GenerateResponse]:
        with telemetry.entry("router/Generate") as span, _told("Generate") as facts:
            with self._budgeted(request):
                session = await self._router.generate(ask_from(request))
                session.resumable = bool(request.generation_id)
            span.set_attribute("shunt.generation_id", session.generation_id)
            _close_with(context, session)
            async for event in _events(session, facts):
                yield event

    async def Resume(
        self, request: router_pb2.ResumeRequest, context: Context
    ) -> AsyncIterator[router_pb2.ResumeResponse]:
        with telemetry.entry("router/Resume") as span, _told("Resume") as facts:
            after = request.last_event_id or None
            session = await self._router.resume(request.generation_id, after)
            span.set_attribute("shunt.generation_id", session.generation_id)
            _close_with(context, session)
            async for event in _events(session, facts):
                yield router_pb2.ResumeResponse(event=event)

    async def Cancel(
        self, request: router_pb2.CancelRequest, context: Context
    ) -> router_pb2.CancelResponse:
        with _told("Cancel") as facts:
            generation_id = wire.generation_id_from(request.generation_id)
            facts["generation_id"] = generation_id
            logs.about(generation_id=generation_id)
            await self._router.cancel(generation_id)
            return router_pb2.CancelResponse()

    async def ListModels(
        self, request: router_pb2.ListModelsRequest, context: Context
    ) -> router_pb2.ListModelsResponse:
        catalogue: ModelCatalogue = self._router.catalogue
        return router_pb2.ListModelsResponse(
            models=[
                router_pb2.Model(
                    model_id=name,
                    digest=catalogue.current(name).digest,
                    max_positions=catalogue.route_positions(name),
                    created_unix_s=catalogue.first_seen[name],
                )
                for name in catalogue.names()
            ]
        )


def _close_with(context: Context, session: Session) -> None:
    """A call that ends while its generator waits in vain is closed all the same."""
    callback: Any = lambda _: session.close()  # noqa: E731 (the stubs want a class)
    context.add_done_callback(callback)


@contextlib.contextmanager
def _told(method: str) -> Iterator[dict[str, str | int]]:
    """A call's line in the log; the block adds what is known of the generation."""
    logs.about(request_id=logs.request_id() or logs.request_id_from(""))
    facts: dict[str, str | int] = {}
    began_s, status = time.monotonic(), "disconnected"
    try:
        yield facts
        status = "ok"
    except ShuntError as error:
        status = code_of(error)
        raise
    finally:
        spent = {"status": status, "duration_s": round(time.monotonic() - began_s, 4)}
        route = f"router/{method}"
        logs.access.info("request", extra={"method": "gRPC", "route": route, **spent, **facts})


async def _events(
    session: Session, facts: dict[str, str | int]
) -> AsyncIterator[router_pb2.GenerateResponse]:
    """Events up to the end; the last one carries usage. Raises what the generation ended with."""
    transcript = session.transcript
    try:
        ended = False
        while not ended:
            await session.wake.wait()
            session.wake.clear()
            ended = session.ended
            deltas = transcript.take()
            last = session.owes_usage
            if deltas or last:
                session.write_began()
                yield _response(session, deltas, last)
                session.resumable = True
                session.written()
        if session.error is not None:
            raise session.error
    finally:
        session.close()
        facts.update(session.facts)


def _response(session: Session, deltas: Sequence[Delta], last: bool) -> router_pb2.GenerateResponse:
    transcript = session.transcript
    usage = None
    if last:
        counted = transcript.usage
        usage = router_pb2.Usage(
            prompt_tokens=counted.prompt_tokens, completion_tokens=counted.completion_tokens
        )
    return router_pb2.GenerateResponse(
        generation_id=session.generation_id,
        event_id=transcript.end_id() if last else transcript.event_id(),
        deltas=[
            router_pb2.Delta(
                choice=delta.choice,
                text=delta.text,
                token_ids=delta.ids,
                logprobs=[wire.logprob_to(logprob) for logprob in delta.logprobs],
                finish_reason=wire.finish_to(delta.finish),
            )
            for delta in deltas
        ],
        usage=usage,
    )


def ask_from(request: router_pb2.GenerateRequest) -> Ask:
    """Raises InvalidArgument and names the field."""
    kind = request.WhichOneof("prompt")
    prompt: tuple[Message, ...] | str | tuple[int, ...]
    if kind == "chat":
        prompt = tuple(_turn(message) for message in request.chat.messages)
    elif kind == "text":
        prompt = _text(request.text, "text")
    elif kind == "token_ids":
        if len(request.token_ids.ids) > MAX_PROMPT_IDS:
            raise InvalidArgument(f"the prompt has over {MAX_PROMPT_IDS} ids", field="prompt")
        prompt = tuple(request.token_ids.ids)
    else:
        raise InvalidArgument("there is no prompt", field="prompt")
    sampling = request.sampling

    present = {field.name for field, _ in sampling.ListFields()}

    def given(name: str) -> Any:
        return getattr(sampling, name) if name in present else None

    return Ask(
        model=request.model,
        kind=GenerationKind.CHAT if kind == "chat" else GenerationKind.COMPLETION,
        prompt=prompt,
        choices=request.choices or 1,
        temperature=given("temperature"),
        top_k=given("top_k"),
        top_p=given("top_p"),
        min_p=given("min_p"),
        presence_penalty=given("presence_penalty"),
        frequency_penalty=given("frequency_penalty"),
        repetition_penalty=given("repetition_penalty"),
        logit_bias=dict(sampling.logit_bias),
        top_logprobs=given("top_logprobs"),
        max_tokens=given("max_tokens"),
        min_tokens=sampling.min_tokens,
        stop_strings=tuple(_text(text, "stop_strings") for text in request.stop_strings),
        stop_token_ids=tuple(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_eos,
        seed=given("seed"),
        generation_id=(
            wire.generation_id_from(request.generation_id) if request.generation_id else ""
        ),
    )


def _turn(message: router_pb2.ChatMessage) -> Message:
    if message.role not in ROLES:
        raise InvalidArgument(f"a role is one of {', '.join(ROLES)}", field="chat.messages.role")
    return Message(message.role, _text(message.content, "chat.messages.content"))


def _text(text: str, field: str) -> str:
    if "\0" in text:
        raise InvalidArgument(f"{field} holds a NUL character", field=field)
    return text
