from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.fake_mesh import MODEL, model_files, tiny_tokenizer
from services.common.generation import GenerationRequest, Sampling
from services.router.model import Model
from services.router.model_files import ModelFiles
from services.router.tokenizer import Tokenizer

CONFIG = {"max_position_embeddings": 2048, "vocab_size": 303}
EOS = 301


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny_tokenizer().to_str().encode())


@pytest.fixture(scope="session")
def model() -> Model:
    files = model_files(tiny_tokenizer())
    return Model(ModelFiles(MODEL, CONFIG, files))


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
