"""A simulated controller has nodes load, form and leave formations in their turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from services.common.errors import ShuntError
from services.controller.core.cluster.actions import DissolveFormation, FormPipeline, LoadStage
from services.controller.core.cluster.turns import Turns
from simulator.processes.controlling import Controlling
from simulator.processes.stages import BLOCK_BYTES


class Formations:
    """Calls of engines, which run beside each other."""

    def __init__(self, of: Controlling) -> None:
        self._of = of
        self._turns = Turns()

    def load(self, action: LoadStage) -> None:
        """In its turn."""
        self._begin(self._turns.load(action))

    def form(self, action: FormPipeline) -> None:
        """Once its nodes have left the formation before."""
        self._begin(self._turns.form(action))

    def dissolve(self, action: DissolveFormation) -> None:
        """Its members leave it."""
        self._turns.dissolve(action)
        for member in action.members:
            self._dissolve(action.formation_id, member.incarnation)

    def _load(self, load: LoadStage) -> None:
        def loaded(result: Any) -> None:
            now_s, cluster = self._of.clock.now_s, self._of.cluster
            if isinstance(result, ShuntError):
                cluster.load_failed(load, result.message, result.permanent, now_s)
            else:
                cluster.load_done(load, result, now_s)
            self._of.stir()

        timeout_s = self._of.environment.settings.hold_timeout_s
        self._of.ask(load.incarnation, "hold", (load,), loaded, timeout_s)

    def _dissolve(self, formation_id: str, incarnation: str) -> None:
        self._of.monitor.dissolves(incarnation, formation_id)

        def answered(_: Any) -> None:
            self._of.monitor.dissolved(incarnation, formation_id)
            self._begin(self._turns.left(incarnation, formation_id))

        self._of.ask(incarnation, "dissolve", (formation_id,), answered)

    def _begin(self, actions: Iterable[FormPipeline | LoadStage]) -> None:
        for form in actions:
            if isinstance(form, LoadStage):
                self._load(form)
            elif self._whole(form):
                self._of.monitor.forms(form)
                self._form(form)

    def _whole(self, form: FormPipeline) -> bool:
        """No member was lost meanwhile."""
        return self._of.cluster.view.pipeline_of(form.formation_id) != ""

    def _form(self, form: FormPipeline) -> None:
        """The head comes last, for it connects the others."""
        others = {member.incarnation for member in form.members[1:]}

        def formed(incarnation: str, result: Any) -> None:
            if isinstance(result, ShuntError):
                self._of.cluster.form_failed(form.formation_id, "", self._of.clock.now_s)
                self._of.stir()
            elif incarnation == form.members[0].incarnation:
                self._of.cluster.formed(form.formation_id, self._of.clock.now_s, BLOCK_BYTES)
                self._of.stir()
            else:
                others.discard(incarnation)
                if not others:
                    self._form_member(form, 0, formed)

        for index in range(1, len(form.members)) if others else (0,):
            self._form_member(form, index, formed)

    def _form_member(
        self, form: FormPipeline, index: int, formed: Callable[[str, Any], None]
    ) -> None:
        incarnation = form.members[index].incarnation
        self._of.ask(incarnation, "form", (form, index), partial(formed, incarnation))
