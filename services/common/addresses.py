"""Addresses of services, host:port; of controllers, of which one leads, several between commas."""

from __future__ import annotations

import re

MAX_CONTROLLERS = 8
_ADDRESS = re.compile(r"[^\s,]+:[0-9]{1,5}")


def checked_addresses(text: str) -> str:
    """Raises ValueError for what is none."""
    parts = text.split(",")
    if len(parts) > MAX_CONTROLLERS or not all(_ADDRESS.fullmatch(part) for part in parts):
        raise ValueError(f"is host:port, or up to {MAX_CONTROLLERS} of them between commas")
    return text


def checked_address(text: str) -> str:
    """Raises ValueError for what is none, or several."""
    if not _ADDRESS.fullmatch(text):
        raise ValueError("is host:port")
    return text


def addresses_of(text: str) -> tuple[str, ...]:
    """Each of them; none of an empty text."""
    return tuple(text.split(",")) if text else ()
