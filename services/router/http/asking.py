"""What a request says of an ask beside its body: whose it is, until when, and by which name."""

from __future__ import annotations

from dataclasses import replace

from services.router.ask import Ask
from services.router.deadlines import HEADER, deadline_from
from services.router.http.exchange import Exchange
from services.router.retries import recognisable


def asked_by(exchange: Exchange, ask: Ask, body: bytes, place: int = 0) -> Ask:
    """The ask as this request makes it; `place` is the prompt's own among those of the body.
    Raises InvalidArgument and names the header."""
    within_s = deadline_from(exchange.header(HEADER))
    ask = replace(ask, tenant=exchange.tenant, deadline_s=within_s)
    return recognisable(ask, exchange.scope["path"], exchange.header, body, place)
