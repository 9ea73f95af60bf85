"""What a noun of the cluster refuses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

S = TypeVar("S")


class IllegalTransition(RuntimeError):
    """A noun was told to do what it cannot do in its state: a defect of whoever told it, never
    something that an operator or a node can bring about."""


def need(condition: bool, what: str) -> None:
    """Raises IllegalTransition unless the condition holds; `what` says who cannot do what."""
    if not condition:
        raise IllegalTransition(what)


def need_state(state: S, allowed: Iterable[S], what: str) -> None:
    """Raises IllegalTransition unless the state is one of those."""
    if state not in allowed:
        raise IllegalTransition(f"{what} while {state}")
