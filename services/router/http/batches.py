"""`/v1/batches`."""

from __future__ import annotations

import json

from services.common.errors import InvalidArgument
from services.router.batches.batches import Batches
from services.router.http.exchange import Exchange
from services.router.http.files import tenant_of
from services.router.http.json_body import parse_object
from services.router.http.paging import listing, page_of
from services.router.retries import KEY_HEADER, MAX_KEY_CHARS

MAX_PAGE = 100
USUAL_PAGE = 20


class BatchRoutes:
    """Handlers."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    async def create(self, exchange: Exchange) -> None:
        key = exchange.header(KEY_HEADER)
        if len(key) > MAX_KEY_CHARS:
            raise InvalidArgument(
                f"an Idempotency-Key has at most {MAX_KEY_CHARS} characters", field=KEY_HEADER
            )
        async with exchange.body() as body:
            fields = parse_object(body)
        models = exchange.tenant.models
        batch = await self._batches.create(fields, tenant_of(exchange), models, key)
        await exchange.answer(200, json.dumps(batch.shown()).encode())

    async def get(self, exchange: Exchange) -> None:
        batch = await self._batches.get(tenant_of(exchange), _id_of(exchange))
        await exchange.answer(200, json.dumps(batch.shown()).encode())

    async def list(self, exchange: Exchange) -> None:
        page = page_of(exchange.query("after", "limit"), MAX_PAGE, USUAL_PAGE)
        found, more = await self._batches.page(tenant_of(exchange), page.after, page.limit)
        await exchange.answer(200, listing([batch.shown() for batch in found], more))

    async def cancel(self, exchange: Exchange) -> None:
        batch = await self._batches.cancel(tenant_of(exchange), _id_of(exchange))
        await exchange.answer(200, json.dumps(batch.shown()).encode())


def _id_of(exchange: Exchange) -> str:
    return str(exchange.scope["path_params"]["id"])
