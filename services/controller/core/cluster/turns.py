"""Which formations may be formed yet: who was told to leave one joins another only behind that."""

from __future__ import annotations

from services.controller.core.cluster.actions import DissolveFormation, FormPipeline


class Turns:
    """Holds back a formation while a member has yet to answer that it left the one before: its
    neighbours there would take it for lost."""

    def __init__(self) -> None:
        self._leaving: set[tuple[str, str]] = set()
        """Incarnations and the formations they were told to leave."""
        self._waiting: list[FormPipeline] = []

    def dissolve(self, action: DissolveFormation) -> None:
        """The members are told to leave; one of these that was to be formed is not."""
        self._leaving |= {(m.incarnation, action.formation_id) for m in action.members}
        self._waiting = [w for w in self._waiting if w.formation_id != action.formation_id]

    def left(self, incarnation: str, formation_id: str) -> list[FormPipeline]:
        """A member answered, or did not in time; returns what may be formed now."""
        self._leaving.discard((incarnation, formation_id))
        return self._free()

    def form(self, action: FormPipeline) -> list[FormPipeline]:
        """What may be formed now: this one, unless it has to wait."""
        self._waiting.append(action)
        return self._free()

    def _free(self) -> list[FormPipeline]:
        busy = {incarnation for incarnation, _ in self._leaving}
        free = [w for w in self._waiting if busy.isdisjoint(m.incarnation for m in w.members)]
        self._waiting = [w for w in self._waiting if w not in free]
        return free
