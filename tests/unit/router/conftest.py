from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from services.common.generation import GenerationRequest, Sampling
from tests.tiny_model import MODEL, tiny_tokenizer

EOS = tiny_tokenizer().token_to_id("<|im_end|>")


@pytest.fixture(scope="session")
def make_request() -> Callable[..., GenerationRequest]:
    """A request with the given sampling values and the rest plain."""

    def make(
        *, stop_strings: tuple[str, ...] = (), choices: int = 1, **sampling: Any
    ) -> GenerationRequest:
        values: dict[str, Any] = {"max_tokens": 10_000, "eos_token_ids": (EOS,), **sampling}
        return GenerationRequest(
            "g", MODEL, (1, 2), Sampling(**values), choices=choices, stop_strings=stop_strings
        )

    return make
