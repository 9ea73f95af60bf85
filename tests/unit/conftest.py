from __future__ import annotations

from typing import Any

import pytest

from tests.configs import LLAMA, QWEN3


@pytest.fixture
def llama() -> dict[str, Any]:
    """Config of a Llama with tied embeddings."""
    return dict(LLAMA)


@pytest.fixture
def qwen3() -> dict[str, Any]:
    """Config of a Qwen3, embeddings untied, seven heads on one KV head."""
    return dict(QWEN3)
