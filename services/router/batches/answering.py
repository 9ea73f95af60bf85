"""One line of a batch becomes one line of results, by the way that every request goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from services.common import errors, logs
from services.common.generation import PriorityClass
from services.common.tenants import Tenant
from services.router.core.batches.batch import Batch, Usage
from services.router.core.batches.lines import (
    Line,
    generation_id_of,
    request_id_of,
    response_line,
)
from services.router.http.errors import body_of, status_of
from services.router.http.responses import Events
from services.router.openai.answers import Answers
from services.router.openai.requests import OpenAiRequest, parse_chat, parse_completion
from services.router.openai.responses.requests import parse_response
from services.router.router import Router
from services.router.session import Session


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What the lines of a batch may ask."""

    parse: Callable[[dict[str, Any]], OpenAiRequest]
    """A line's body; raises InvalidArgument."""
    whole: Callable[[Session], bytes]
    """The answer, once the generation has ended."""
    tells_stuck: bool = False
    """An answer whose form became too much is told as such, and is no error."""


def _completion(session: Session) -> bytes:
    transcript = session.transcript
    answers = Answers(transcript.request, transcript.vocabulary)
    return answers.whole(answers.choices(transcript.take()), transcript.usage)


def _parse_response(body: dict[str, Any]) -> OpenAiRequest:
    asked = parse_response(body)
    for name in ("background", "previous_response_id"):
        if getattr(asked, name):
            raise errors.InvalidArgument(f"{name} has no place in a batch", field=name)
    return OpenAiRequest(asked.ask(), asked.stream)


def _response(session: Session) -> bytes:
    events = Events(session)
    events.told()
    events.ending()
    return json.dumps(events.whole(), ensure_ascii=False, separators=(",", ":")).encode()


ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType(
    {
        "/v1/chat/completions": Endpoint(parse_chat, _completion),
        "/v1/completions": Endpoint(parse_completion, _completion),
        "/v1/responses": Endpoint(_parse_response, _response, tells_stuck=True),
    }
)
PASSING = (
    errors.Unavailable,
    errors.ResourceExhausted,
    errors.DeadlineExceeded,
    errors.Aborted,
)
"""What says nothing of the line: it is asked again."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A line's result; without usage it failed."""

    result: bytes
    usage: Usage | None


class Answering:
    """Asks lines; `sessions` are those under way."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self.sessions: set[Session] = set()

    async def answer(self, batch: Batch, line: Line) -> Answered:
        """Raises one of PASSING when it is to be asked again. Asked again, by whichever router, it
        goes on with the generation that the first ask began."""
        request_id = request_id_of(batch.batch_id, line.number)
        logs.about(request_id=request_id)
        try:
            body, usage = await self._asked(batch, line)
        except PASSING:
            raise
        except errors.ShuntError as error:
            status, body = status_of(error), body_of(error)
            return Answered(response_line(batch.batch_id, line, status, request_id, body), None)
        return Answered(response_line(batch.batch_id, line, 200, request_id, body), usage)

    async def _asked(self, batch: Batch, line: Line) -> tuple[bytes, Usage]:
        if batch.models is not None and line.model not in batch.models:
            raise errors.NotFound(f"there is no model {line.model[:64]}", field="model")
        endpoint = ENDPOINTS[batch.endpoint]
        request = endpoint.parse(line.body)
        if request.further:
            raise errors.InvalidArgument(
                f"a line of a batch has one prompt, not {1 + len(request.further)}: send a line "
                "for each",
                field="prompt",
            )
        name = generation_id_of(batch.batch_id, line.number)
        ask = replace(request.ask, generation_id=name, tenant=_tenant_of(batch))
        session = await self._router.generate(ask)
        self.sessions.add(session)
        try:
            while not session.ended:
                await session.wake.wait()
                session.wake.clear()
            if session.error is not None and not (endpoint.tells_stuck and session.stuck):
                raise session.error
            body, used = endpoint.whole(session), session.transcript.usage
        finally:
            self.sessions.discard(session)
            session.close()
        return body, Usage(used.prompt_tokens, used.completion_tokens, used.cached_tokens)

    async def give_up(self, batch: Batch, number: int) -> None:
        """Its batch is cancelled: nothing of it goes on."""
        name = generation_id_of(batch.batch_id, number)
        await self._router.held.cancel(name, _tenant_of(batch))


def _tenant_of(batch: Batch) -> Tenant:
    """Who asks a batch's lines: its limits a minute are for what somebody waits for."""
    models = None if batch.models is None else frozenset(batch.models)
    return Tenant(batch.tenant, PriorityClass.TOLERANT, models=models)
