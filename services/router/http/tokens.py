"""Routes about tokens, in vLLM's shapes: a prompt's ids, and the text of ids."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from services.common.errors import InvalidArgument
from services.router.http.exchange import Exchange
from services.router.http.json_body import parse_object
from services.router.openai.tokens import parse_detokenize, parse_tokenize
from services.router.router import Router


class TokenRoutes:
    """Of one router."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def tokenize(self, exchange: Exchange) -> None:
        """What a prompt is to a model."""
        async with exchange.body() as body:
            asked = parse_tokenize(self._with_model(exchange, parse_object(body)))
            ask = replace(asked.ask, tenant=exchange.tenant)
            ids, model = await self._router.read(ask)
        strs = [model.vocabulary.label(i).decode("utf-8", "replace") for i in ids]
        said = {
            "count": len(ids),
            "max_model_len": self._router.models.positions(asked.ask.model),
            "tokens": ids,
            "token_strs": strs if asked.spelt else None,
        }
        await exchange.answer(200, json.dumps(said, ensure_ascii=False).encode())

    async def detokenize(self, exchange: Exchange) -> None:
        """The text that ids stand for."""
        async with exchange.body() as body:
            name, ids = parse_detokenize(self._with_model(exchange, parse_object(body)))
            model = await self._router.model(name, exchange.tenant)
        for token_id in ids:
            if not 0 <= token_id < model.facts.vocabulary_size:
                raise InvalidArgument(
                    f"tokens: {token_id} is no token of this model, whose ids go from 0 to "
                    f"{model.facts.vocabulary_size - 1}",
                    field="tokens",
                )
        await exchange.answer(200, json.dumps({"prompt": model.text_of(ids)}).encode())

    def _with_model(self, exchange: Exchange, body: dict[str, Any]) -> dict[str, Any]:
        """Where one model is served nobody has to name it."""
        names = self._router.models.names(exchange.tenant)
        if body.get("model") is not None:
            return body
        if len(names) != 1:
            raise InvalidArgument(
                f"model must be a string, and is missing: {len(names)} models are served",
                field="model",
            )
        return {**body, "model": names[0]}
