"""The gRPC door: the same generations as over HTTP."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import grpc
from shuntserve.common.v1 import common_pb2
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import logs, telemetry, wire
from services.common.errors import InvalidArgument, ShuntError, Unavailable
from services.common.generation import SAMPLING, GenerationKind
from services.model import grammar
from services.model.chat import Message
from services.router.ask import MAX_PROMPT_IDS, Ask
from services.router.catalogue import ModelCatalogue
from services.router.core.actions import ArithmeticChanged
from services.router.core.body_budget import BodyBudget
from services.router.core.transcript import Delta
from services.router.deadlines import deadline_of
from services.router.http.errors import code_of
from services.router.key_guard import caller
from services.router.router import Router
from services.router.session import Session
from services.router.wire_tools import text_from, tools_from, turns_from

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
                ask = replace(ask_from(request), tenant=caller())
                session = await self._router.generate(ask)
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
            session = await self._router.resume(request.generation_id, after, caller())
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
            await self._router.held.cancel(generation_id, caller())
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
                for name in self._router.models.names(caller())
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
    if tenant := caller().name:
        facts["tenant"] = tenant
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
            last, changes = session.owes_usage, session.take_changes()
            if deltas or last or changes:
                session.write_began()
                yield _response(session, deltas, last, changes)
                session.resumable = True
                session.written()
        if session.error is not None:
            raise session.error
    finally:
        session.close()
        facts.update(session.facts)


def _response(
    session: Session, deltas: Sequence[Delta], last: bool, changes: Sequence[ArithmeticChanged]
) -> router_pb2.GenerateResponse:
    transcript = session.transcript
    usage = None
    if last:
        counted = transcript.usage
        usage = router_pb2.Usage(
            prompt_tokens=counted.prompt_tokens,
            completion_tokens=counted.completion_tokens,
            cached_prompt_tokens=counted.cached_tokens,
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
                finish_reason=(
                    common_pb2.FINISH_REASON_TOOL_CALLS
                    if delta.made_calls
                    else wire.finish_to(delta.finish)
                ),
                reasoning=delta.reasoning,
                tool_calls=[
                    router_pb2.ToolCallPiece(
                        index=call.index, id=call.call_id, name=call.name, arguments=call.arguments
                    )
                    for call in delta.calls
                ],
            )
            for delta in deltas
        ],
        usage=usage,
        arithmetic_changes=[
            router_pb2.ArithmeticChange(before=change.before, now=change.now) for change in changes
        ],
    )


def ask_from(request: router_pb2.GenerateRequest) -> Ask:
    """Raises InvalidArgument and names the field."""
    kind = request.WhichOneof("prompt")
    prompt: tuple[Message, ...] | str | tuple[int, ...]
    if kind == "chat":
        prompt = turns_from(request.chat.messages)
    elif kind == "text":
        prompt = text_from(request.text, "text")
    elif kind == "token_ids":
        if len(request.token_ids.ids) > MAX_PROMPT_IDS:
            raise InvalidArgument(f"the prompt has over {MAX_PROMPT_IDS} ids", field="prompt")
        prompt = tuple(request.token_ids.ids)
    else:
        raise InvalidArgument("there is no prompt", field="prompt")
    sampling = request.sampling
    present = {field.name for field, _ in sampling.ListFields()}
    return Ask(
        model=request.model,
        kind=GenerationKind.CHAT if kind == "chat" else GenerationKind.COMPLETION,
        prompt=prompt,
        choices=request.choices or 1,
        options={name: SAMPLING[name].read(sampling) for name in SAMPLING if name in present},
        stop_strings=tuple(text_from(text, "stop_strings") for text in request.stop_strings),
        cache_salt=request.cache_salt,
        echo=request.echo,
        grammar=_grammar(request.structure),
        grammar_parameter="structure",
        tools=tools_from(request.tools) if kind == "chat" else None,
        template_options=(
            {"enable_thinking": request.enable_thinking}
            if request.HasField("enable_thinking")
            else {}
        ),
        deadline_s=(
            deadline_of(request.deadline_ms, "deadline_ms")
            if request.HasField("deadline_ms")
            else None
        ),
        generation_id=(
            wire.generation_id_from(request.generation_id) if request.generation_id else ""
        ),
    )


def _grammar(structure: router_pb2.Structure) -> str:
    """Empty where there is no structure."""
    match structure.WhichOneof("kind"):
        case "json_schema":
            where = "structure.json_schema"
            schema = grammar.schema_from(structure.json_schema, where)
            return grammar.of_json_schema(schema, where)
        case "regex":
            return grammar.of_regex(structure.regex)
        case "choice":
            if not structure.choice.texts or not all(structure.choice.texts):
                raise InvalidArgument(
                    "a choice has texts that are not empty", field="structure.choice"
                )
            return grammar.of_choice(structure.choice.texts)
        case "lark":
            return grammar.of_lark(structure.lark)
    return ""
