"""OpenAI's Responses API: a generation that can be asked for by its id, long after its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

from services.common.errors import InvalidArgument, NotFound, OutOfRange
from services.common.exchange import GenerationState, GenerationView
from services.common.generation import FinishReason
from services.common.tenants import Tenant
from services.router.ask import Ask
from services.router.background import Background
from services.router.held import Expired
from services.router.http.answering import (
    STREAM_HEADERS,
    about,
    attached,
    ended,
    stream,
    while_connected,
)
from services.router.http.asking import asked_by
from services.router.http.bodies import Bodies
from services.router.http.errors import fields_of
from services.router.http.exchange import Exchange
from services.router.http.json_body import parse_object, shown
from services.router.openai.responses.details import PREFIX, details_of
from services.router.openai.responses.events import ResponseEvents, told_of, whole_of
from services.router.openai.responses.items import Item
from services.router.openai.responses.requests import ResponseBody, parse_response
from services.router.router import Router
from services.router.session import Session

T = TypeVar("T")
LONG_IDS = 1024
"""What is longer is told beside the event loop."""
MAX_EVENT_ID_CHARS = 64
"""That any event of a response has: what is cut behind them is none."""
MAX_NUMBER = 1 << 53
"""Of an event; what JavaScript counts to."""
MAX_PAGE = 100
PAGE = 20
_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
}
"""Parameters that the Responses API has another name for."""


class Responses:
    """The handlers of its routes."""

    def __init__(self, router: Router, background: Background, bodies: Bodies) -> None:
        self._router = router
        self._background = background
        self._bodies = bodies

    async def create(self, exchange: Exchange) -> None:
        """POST /v1/responses."""
        with _as_named_here():
            session, streamed = await self._begun(exchange)
        with attached(exchange, session, keep=partial(self._unread, exchange)):
            if session.request.runs_unread and not streamed:
                await self._accepted(exchange, session)
            elif streamed:
                await stream(exchange, [session], Events(session))
            elif await ended(exchange, [session]):
                async with while_connected(exchange):
                    await session.end_kept()
                if session.error is not None and not session.stuck:
                    raise session.error
                events = Events(session)
                events.told()
                events.ending()
                await exchange.answer(200, _json(events.whole()))

    async def _accepted(self, exchange: Exchange, session: Session) -> None:
        """Answers once it is sure that it will run, whoever dies."""
        async with while_connected(exchange):
            await session.begun()
        if session.error is not None:
            raise session.error
        events = Events(session)
        events.told()
        await exchange.answer(200, _json(events.whole()))

    def _unread(self, exchange: Exchange, session: Session) -> None:
        """A client that left before it was told a name could ask for it by none but a key of its
        own: without one it ends, and whoever asks again begins another."""
        told, by_key = exchange.status != 0, not session.request.ask_digest
        if told or by_key:
            self._background.keep(session)
        else:
            session.cancel()
            session.close()

    async def retrieve(self, exchange: Exchange) -> None:
        """GET /v1/responses/{id}, whole or as its events."""
        view = await self._view(exchange)
        streamed, seen = _asked(exchange)
        if not streamed:
            vocabulary = await self._router.models.vocabulary(view)
            whole = await _aside(view, lambda: _json(whole_of(view, vocabulary)))
            await exchange.answer(200, whole)
        elif view.state is GenerationState.FINISHED and not seen.position:
            await self._retell(exchange, view, seen.number)
        else:
            await self._follow(exchange, view, seen)

    async def cancel(self, exchange: Exchange) -> None:
        """POST /v1/responses/{id}/cancel: what has ended stays as it is."""
        view = await self._view(exchange)
        if view.state is GenerationState.OPEN:
            await self._router.held.cancel(view.request.generation_id, exchange.tenant)
            view = await self._router.held.view(view.request.generation_id, exchange.tenant)
        vocabulary = await self._router.models.vocabulary(view)
        whole = await _aside(view, lambda: _json(whole_of(view, vocabulary)))
        await exchange.answer(200, whole)

    async def delete(self, exchange: Exchange) -> None:
        """DELETE /v1/responses/{id}: ended, if it runs, and nothing of it is left."""
        view = await self._view(exchange)
        await self._router.held.delete(view.request.generation_id)
        response_id = PREFIX + view.request.generation_id
        await exchange.answer(
            200, _json({"id": response_id, "object": "response", "deleted": True})
        )

    async def input_items(self, exchange: Exchange) -> None:
        """GET /v1/responses/{id}/input_items: the conversation it answers, a page at a time."""
        view = await self._view(exchange)
        order, limit, after = _page(exchange)
        items = await _aside(view, lambda: details_of(view.request).items)
        if order == "desc":
            items = items[::-1]
        start = 0
        if after:
            ids = [item["id"] for item in items]
            if after not in ids:
                raise InvalidArgument(f"after names no item: {shown(after)}", field="after")
            start = ids.index(after) + 1
        shown_items = items[start : start + limit]
        page = {
            "object": "list",
            "data": shown_items,
            "first_id": shown_items[0]["id"] if shown_items else "",
            "last_id": shown_items[-1]["id"] if shown_items else "",
            "has_more": len(items) > start + limit,
        }
        await exchange.answer(200, _json(page))

    async def _begun(self, exchange: Exchange) -> tuple[Session, bool]:
        async with exchange.body() as body:

            def understand(body: bytes) -> ResponseBody:
                return parse_response(parse_object(body))

            asked = await self._bodies.understood(body, understand)
            async with while_connected(exchange):
                before = await self._before(asked.previous_response_id, exchange.tenant)

                def complete(body: bytes) -> Ask:
                    return asked_by(exchange, asked.ask(before), body)

                ask = await self._bodies.understood(body, complete)
                return await self._router.generate(ask), asked.stream

    async def _before(self, response_id: str, tenant: Tenant) -> list[Item]:
        """The conversation up to the end of a response; nothing where none is named."""
        if not response_id:
            return []
        view = await self._known(response_id, "previous_response_id", tenant)
        if view.state is not GenerationState.FINISHED:
            said = f"{response_id} has no end to go on from: it is {view.state}"
            raise InvalidArgument(said, field="previous_response_id")
        vocabulary = await self._router.models.vocabulary(view)

        def conversation() -> list[Item]:
            output: list[Item] = whole_of(view, vocabulary)["output"]
            return [*details_of(view.request).items, *output]

        return await _aside(view, conversation)

    async def _view(self, exchange: Exchange) -> GenerationView:
        response_id = exchange.scope["path_params"]["id"]
        view = await self._known(response_id, "response_id", exchange.tenant)
        about(exchange, view.request.generation_id)
        return view

    async def _known(self, response_id: str, field: str, tenant: Tenant) -> GenerationView:
        """Raises NotFound for what is no response of the tenant's, or is kept no more."""
        unknown = NotFound(f"there is no response {shown(response_id)}", field=field)
        if not response_id.startswith(PREFIX):
            raise unknown
        try:
            view = await self._router.held.view(response_id.removeprefix(PREFIX), tenant)
        except (NotFound, Expired, InvalidArgument):
            raise unknown from None
        if view.request.response is None:
            raise unknown
        return view

    async def _retell(self, exchange: Exchange, view: GenerationView, after: int | None) -> None:
        """The events of one that has ended, at once."""
        vocabulary = await self._router.models.vocabulary(view)
        events, data = await _aside(view, lambda: told_of(view, vocabulary, after))
        _check_within(events, after)
        await exchange.begin(200, STREAM_HEADERS)
        await exchange.finish(data)

    async def _follow(self, exchange: Exchange, view: GenerationView, seen: Seen) -> None:
        async with while_connected(exchange):
            session = await self._router.resume(
                view.request.generation_id, seen.position or None, exchange.tenant
            )
        with attached(exchange, session, keep=self._background.keep):
            await stream(exchange, [session], Events(session, seen.number))


class Seen(NamedTuple):
    """What a reader had of a response's events."""

    number: int | None = None
    """Of the last one."""
    position: str = ""
    """The ids that it was told of, as the last one's id names them; empty where it gives none."""


class Events:
    """A response's events for the reader of a session."""

    def __init__(self, session: Session, after: int | None = None) -> None:
        transcript = session.transcript
        self._session = session
        self._events = ResponseEvents(transcript.request, transcript.vocabulary, after)

    def beginning(self) -> bytes:
        had = self._session.transcript.had(0)
        return self._events.feed(had.ids, had.logprobs, had.cached_tokens)

    def settling(self) -> Coroutine[Any, Any, None]:
        """Who was told the end of what is stored finds it ended, and may cancel it in vain."""
        return self._session.end_kept()

    def told(self) -> bytes:
        if self._session.overruled:
            return b""  # its last ids are an end that is none
        transcript = self._session.transcript
        deltas, cached = transcript.take(), transcript.usage.cached_tokens
        return b"".join(self._events.feed(d.ids, d.logprobs, cached) for d in deltas)

    def ending(self) -> bytes:
        session = self._session
        if session.stuck:
            return self._events.ended(FinishReason.GRAMMAR)
        return b"" if session.error is None else self._events.error(fields_of(session.error))

    def tells_end_of(self, session: Session) -> bool:
        return session.stuck

    def whole(self) -> dict[str, Any]:
        """The response, as far as its events were asked for."""
        return self._events.whole()


async def _aside(view: GenerationView, work: Callable[[], T]) -> T:
    """What is long is worked on beside the event loop."""
    terms = view.request.response
    ids = sum(len(span.ids) for span in view.spans)
    if ids > LONG_IDS or (terms is not None and len(terms.details) > LONG_IDS * 16):
        return await asyncio.to_thread(work)
    return work()


def _check_within(events: ResponseEvents, after: int | None) -> None:
    if after is not None and after > events.number:
        raise OutOfRange(
            f"starting_after is {after}, and the last event is {events.number}",
            field="starting_after",
        )


def _query_of(exchange: Exchange) -> dict[str, str]:
    return dict(parse_qsl(exchange.scope["query_string"].decode("latin-1"), keep_blank_values=True))


def _asked(exchange: Exchange) -> tuple[bool, Seen]:
    """Whether events are wanted, and behind which: a browser that comes back asks the same as at
    first, and names the last event that it had in a header."""
    query, event = _query_of(exchange), exchange.header("last-event-id")
    streamed = _flag(query.get("stream", "false"))
    after = query.get("starting_after")
    if after is not None and not streamed:
        raise InvalidArgument("starting_after needs stream=true", field="starting_after")
    if streamed and event:
        number, _, position = event[:MAX_EVENT_ID_CHARS].partition(":")
        return streamed, Seen(_number(number, "last_event_id", 0, MAX_NUMBER), position)
    if after is None:
        return streamed, Seen()
    return streamed, Seen(_number(after, "starting_after", 0, MAX_NUMBER))


def _page(exchange: Exchange) -> tuple[str, int, str]:
    query = _query_of(exchange)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidArgument(f"order must be asc or desc, not {shown(order)}", field="order")
    limit = _number(query.get("limit", str(PAGE)), "limit", 1, MAX_PAGE)
    return order, limit, query.get("after", "")


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise InvalidArgument(f"stream must be true or false, not {shown(text)}", field="stream")
    return text.lower() == "true"


def _number(text: str, field: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and low <= int(text) <= high):
        raise InvalidArgument(
            f"{field} must be an integer in [{low}, {high}], not {shown(text)}", field=field
        )
    return int(text)


@contextmanager
def _as_named_here() -> Iterator[None]:
    """Errors name parameters as the Responses API does."""
    try:
        yield
    except InvalidArgument as error:
        flat = error.field.replace(".function.", ".").replace(".allowed_tools.", ".")
        name = _NAMES.get(error.field, flat)
        error.message = error.message.replace(error.field, name) if error.field else error.message
        error.field = name
        raise


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
