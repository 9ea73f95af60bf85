"""Answers about generations: events as they come, or one answer when everything is there.

A request that has several prompts is several generations; its answer is about all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Protocol

from services.common import logs
from services.common.generation import GenerationKind
from services.router.core.transcript import Usage
from services.router.http.access import visit_of
from services.router.http.errors import HttpError, body_of, code_of
from services.router.http.exchange import Exchange
from services.router.openai.answers import DONE, Answers, Place
from services.router.session import Session

COMMENT = b": waiting\n"
"""No blank line behind it: clients that remember an event's id would take it for an event without
data."""
STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


class Teller(Protocol):
    """Writes what the readers of sessions come to know, in the shape of one API."""

    def beginning(self) -> bytes:
        """What stands before everything else; asked for once."""
        ...

    def told(self) -> bytes:
        """What came to light since this was last asked for."""
        ...

    def ending(self) -> bytes:
        """The last of an answer whose readers have ended, well or not."""
        ...

    def tells_end_of(self, session: Session) -> bool:
        """The end of a session, though it is an error, is an event like others."""
        ...

    def settling(self) -> Coroutine[Any, Any, None] | None:
        """What has to end before that may be told, if anything has to."""
        ...


async def stream(exchange: Exchange, sessions: Sequence[Session], teller: Teller) -> None:
    """Server-sent events until the end, or until the client has gone."""
    wake = _one_wake(sessions)
    with _watched(exchange, wake, sessions):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(exchange.settings.first_event_s):
                while not (all(map(_has_news, sessions)) or exchange.disconnected):
                    await _next(wake)
        if not exchange.disconnected:
            for session in sessions:
                untold = not (session.transcript.waiting_bytes or teller.tells_end_of(session))
                if session.error is not None and untold:
                    raise session.error
            first = teller.beginning()
            await exchange.begin(200, STREAM_HEADERS)
            for session in sessions:
                session.resumable = True
                session.cut = exchange.cut
            wake.set()
            await _tell(exchange, wake, sessions, teller, first)
    if exchange.disconnected:
        await sessions[0].closing_turn()


async def _tell(
    exchange: Exchange,
    wake: asyncio.Event,
    sessions: Sequence[Session],
    teller: Teller,
    first: bytes,
) -> None:
    """The events of an answer that has begun."""
    while True:
        await _next(wake)
        if exchange.disconnected:
            return
        ended = all(session.ended for session in sessions) or any(
            session.error is not None for session in sessions
        )
        settling = teller.settling() if ended else None
        if settling is not None:
            await _settled(exchange, wake, sessions, settling)
            if exchange.disconnected:
                return
        data = first + b"".join(map(_changes, sessions)) + teller.told()
        first = b""
        if ended:
            data += teller.ending()
        if data or ended:
            await _write(exchange, sessions, data, more=not ended)
        else:
            await _comment(exchange, sessions)
        if ended:
            return


async def _settled(
    exchange: Exchange,
    wake: asyncio.Event,
    sessions: Sequence[Session],
    settling: Coroutine[Any, Any, None],
) -> None:
    """Returns when the ending may be told, or the client has gone. Who waits for that is not left
    in silence."""
    task = asyncio.create_task(settling)
    task.add_done_callback(lambda _: wake.set())
    try:
        while not (task.done() or exchange.disconnected):
            await _next(wake)
            if not (task.done() or exchange.disconnected):
                await _comment(exchange, sessions)
        if task.done():
            task.result()
    finally:
        task.cancel()


async def _comment(exchange: Exchange, sessions: Sequence[Session]) -> None:
    """Where one is due."""
    if any(session.comment_due for session in sessions):
        await _write(exchange, sessions, COMMENT, more=True)


async def _write(
    exchange: Exchange, sessions: Sequence[Session], data: bytes, *, more: bool
) -> None:
    for session in sessions:
        session.write_began()
    await exchange.write(data, more=more)
    for session in sessions:
        session.written()


async def ended(exchange: Exchange, sessions: Sequence[Session]) -> bool:
    """Whether all readers ended before their client left; names the arithmetic in the answer's
    headers where it changed."""
    wake = _one_wake(sessions)
    with _watched(exchange, wake, sessions):
        while not (all(session.ended for session in sessions) or exchange.disconnected):
            await _next(wake)
    if exchange.disconnected:
        await sessions[0].closing_turn()
    changes = [change for session in sessions for change in session.take_changes()]
    if changes:
        classes = [changes[0].before, *(change.now for change in changes)]
        exchange.headers["x-numerics-classes"] = ", ".join(classes)
    return all(session.ended for session in sessions)


async def whole(exchange: Exchange, sessions: Sequence[Session]) -> None:
    """One answer of a completion API when everything is there."""
    if not await ended(exchange, sessions):
        return
    for session in sessions:
        if session.error is not None:
            raise session.error
    told = _told(sessions)
    choices = [
        choice for answers, session in told for choice in answers.choices(session.transcript.take())
    ]
    await exchange.answer(200, told[0][0].whole(choices, _usage(sessions)))


class Chunks:
    """Events in the shapes of the completion APIs."""

    def __init__(self, sessions: Sequence[Session], *, role: bool) -> None:
        self._answers = _told(sessions)
        self._role = role and sessions[0].request.kind is GenerationKind.CHAT

    def beginning(self) -> bytes:
        answers, first = self._answers[0]
        return answers.roles(first.transcript.event_id()) if self._role else b""

    def told(self) -> bytes:
        return b"".join(
            answers.chunks(session.transcript.take()) for answers, session in self._answers
        )

    def settling(self) -> None:
        """Nothing has to."""

    def tells_end_of(self, session: Session) -> bool:
        return False

    def ending(self) -> bytes:
        sessions = [session for _, session in self._answers]
        for session in sessions:
            if session.error is not None:
                return b"data: " + body_of(session.error) + b"\n\n"
        answers, first = self._answers[0]
        usage = b""
        if first.request.include_usage and any(session.owes_usage for session in sessions):
            usage = answers.usage(first.transcript.end_id(), _usage(sessions))
        return usage + DONE


async def _next(wake: asyncio.Event) -> None:
    await wake.wait()
    wake.clear()


def _one_wake(sessions: Sequence[Session]) -> asyncio.Event:
    """What each of them sets from now on, and has set."""
    wake = sessions[0].wake
    for session in sessions[1:]:
        session.wake = wake
    wake.set()
    return wake


def _has_news(session: Session) -> bool:
    return session.ended or session.transcript.waiting_bytes > 0


def _told(sessions: Sequence[Session]) -> list[tuple[Answers, Session]]:
    """Each with what renders it."""
    several = len(sessions) > 1
    return [
        (
            Answers(
                session.request,
                session.transcript.vocabulary,
                Place(number, sessions[0].generation_id) if several else None,
            ),
            session,
        )
        for number, session in enumerate(sessions)
    ]


def _usage(sessions: Sequence[Session]) -> Usage:
    return sum((session.transcript.usage for session in sessions[1:]), sessions[0].transcript.usage)


def _changes(session: Session) -> bytes:
    """Comments, each a line, before the text that comes of it."""
    return b"".join(
        f": the arithmetic changed from {change.before} to {change.now}\n".encode()
        for change in session.take_changes()
    )


@contextlib.contextmanager
def attached(
    exchange: Exchange, *begun: Session, keep: Callable[[Session], object] = Session.close
) -> Iterator[list[Session]]:
    """Every answer about generations names them; leaving detaches their reader, or has somebody
    keep what runs unread. More may be begun inside the block."""
    sessions, facts = list(begun), visit_of(exchange.scope).facts
    name(exchange, sessions)
    try:
        yield sessions
    finally:
        for session in sessions:
            runs_on = session.request.runs_unread and not session.ended
            if runs_on:
                keep(session)
            else:
                session.close()
            facts.update(_together(facts, session.facts))
            if session.error is not None:
                facts["error"] = code_of(session.error)
            elif not (runs_on or session.ended):
                facts["error"] = "disconnected"


def about(exchange: Exchange, generation_id: str) -> None:
    """What the exchange is about: its answer and its lines in the log say so."""
    exchange.headers["x-generation-id"] = generation_id
    visit_of(exchange.scope).facts["generation_id"] = generation_id
    logs.about(generation_id=generation_id)


def name(exchange: Exchange, sessions: Sequence[Session]) -> None:
    if sessions:
        names = ", ".join(session.generation_id for session in sessions)
        exchange.headers["x-generation-id"] = names


def _together(
    facts: Mapping[str, str | int], more: Mapping[str, str | int]
) -> dict[str, str | int]:
    """Tokens of several generations are added up, their names stand side by side."""
    found: dict[str, str | int] = dict(more)
    for name, value in more.items():
        held = facts.get(name)
        if isinstance(value, int) and isinstance(held, int):
            found[name] = held + value
        elif name == "generation_id" and held not in (None, value):
            found[name] = f"{held}, {value}"
    return found


@contextlib.asynccontextmanager
async def while_connected(exchange: Exchange) -> AsyncIterator[None]:
    """Ends the block when the client has gone: nothing begins for nobody."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as gone:
            with exchange.leaving(lambda: gone.reschedule(loop.time())):
                yield
    except TimeoutError:
        raise HttpError(400, "disconnected", "the client has gone") from None


@contextlib.contextmanager
def _watched(
    exchange: Exchange, wake: asyncio.Event, sessions: Sequence[Session]
) -> Iterator[None]:
    """Wakes the reader when the client has gone; heads know it before."""

    def left() -> None:
        for session in sessions:
            session.client_gone()
        wake.set()

    with exchange.leaving(left):
        yield
