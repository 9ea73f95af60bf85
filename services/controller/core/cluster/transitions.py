"""What a noun of the cluster refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

S = TypeVar("S")


class Noun:
    """Something that tells whoever keeps it when a field of it becomes another one; of what is
    found in a field and changed there it tells by `touch`."""

    __slots__ = ()
    touched: Callable[[], object] | None

    def touch(self) -> None:
        """It has changed."""
        if self.touched is not None:
            self.touched()

    if not TYPE_CHECKING:  # mypy would take it to accept any name

        def __setattr__(self, name: str, value: object) -> None:
            changes = getattr(self, name, None) is not value
            object.__setattr__(self, name, value)
            touched = getattr(self, "touched", None)
            if changes and touched is not None and name != "touched":
                touched()


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
