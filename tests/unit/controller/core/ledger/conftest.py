from __future__ import annotations

import pytest

from tests.unit.controller.core.ledger.book import Book


@pytest.fixture
def book() -> Book:
    return Book()
