"""What may begin yet: who was told to leave a formation joins another, or loads, behind that."""

from __future__ import annotations

from services.controller.core.cluster.actions import DissolveFormation, FormPipeline, LoadStage


class Turns:
    """Holds back a formation while a member has yet to answer that it left the one before: its
    neighbours there would take it for lost. And a load, for an engine lets nothing go that its
    formation needs."""

    def __init__(self) -> None:
        self._leaving: set[tuple[str, str]] = set()
        """Incarnations and the formations they were told to leave."""
        self._waiting: list[FormPipeline | LoadStage] = []

    def dissolve(self, action: DissolveFormation) -> None:
        """The members are told to leave; one of these that was to be formed is not."""
        self._leaving |= {(m.incarnation, action.formation_id) for m in action.members}
        self._waiting = [
            w
            for w in self._waiting
            if isinstance(w, LoadStage) or w.formation_id != action.formation_id
        ]

    def left(self, incarnation: str, formation_id: str) -> list[FormPipeline | LoadStage]:
        """A member answered, or did not in time; returns what may begin now."""
        self._leaving.discard((incarnation, formation_id))
        return self._free()

    def form(self, action: FormPipeline) -> list[FormPipeline | LoadStage]:
        """What may begin now: this one, unless it has to wait."""
        self._waiting.append(action)
        return self._free()

    def load(self, action: LoadStage) -> list[FormPipeline | LoadStage]:
        """What may begin now: this one, unless it has to wait, in place of one of its node that
        does."""
        self._waiting = [
            w
            for w in self._waiting
            if not isinstance(w, LoadStage) or w.incarnation != action.incarnation
        ]
        self._waiting.append(action)
        return self._free()

    def _free(self) -> list[FormPipeline | LoadStage]:
        busy = {incarnation for incarnation, _ in self._leaving}
        free = [w for w in self._waiting if busy.isdisjoint(_processes(w))]
        self._waiting = [w for w in self._waiting if w not in free]
        return free


def _processes(action: FormPipeline | LoadStage) -> list[str]:
    """Those that take part."""
    if isinstance(action, LoadStage):
        return [action.incarnation]
    return [member.incarnation for member in action.members]
