"""Which generations run in which formation, and where each of them goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from services.common.exchange import ResumeQuestion
from services.common.phases import PipelinePhase
from services.controller.core.ledger.entry import JournalEntry
from services.controller.core.ledger.granting import HandedOn, Needs, best_head
from services.controller.core.ledger.outcomes import ServingHead

_NOTHING: Mapping[str, float] = MappingProxyType({})


class Running:
    """Of all generations; who asks has looked whether they may go on at all."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}
        """By the formation that runs them."""
        self._promised: dict[str, str] = {}
        """To which formation each will rather be granted next: what it goes on from is there."""
        self._handed_on = HandedOn()

    def names(self, formation_id: str) -> list[str]:
        """Generations that run there, in the order of their names."""
        return sorted(self._names.get(formation_id, ()))

    def place(self, name: str, entry: JournalEntry, runs: bool) -> None:
        """It runs where its epoch is, or nowhere."""
        names = self._names.setdefault(entry.formation_id, set())
        if entry.began_at and runs is not (name in names):
            self._handed_on.count(entry.began_at, entry.formation_id, 1 if runs else -1)
        if runs:
            names.add(name)
        else:
            names.discard(name)
            if not names:
                del self._names[entry.formation_id]

    def over(self, name: str) -> None:
        """It was granted, or is gone: nothing is promised any more."""
        self._promised.pop(name, None)

    def best(
        self,
        entry: JournalEntry,
        question: ResumeQuestion,
        trusted: Sequence[ServingHead],
        heads: Sequence[ServingHead],
    ) -> ServingHead | None:
        """The best of those that are trusted; where all that serve are `heads`, one of them says in
        which proportion it hands on."""
        began_at = entry.pipeline_id if entry.handed_on else ""
        weights = next((h.onward for h in heads if h.route.pipeline_id == began_at), _NOTHING)
        return best_head(
            Needs.of(entry.request),
            entry.numerics_class,
            trusted,
            self._loads(began_at if weights else ""),
            weights,
            goes_on=entry.has_begun(question.held),
            promised=self._promised.get(question.generation_id, ""),
        )

    def promise(
        self, entries: Mapping[str, JournalEntry], formation_id: str, heads: Sequence[ServingHead]
    ) -> dict[str, ServingHead]:
        """Where the generations that run in a formation will rather go on, once they have left it,
        each at a head of their arithmetic, at the one that was promised before if that serves; by
        name. Left out: those that none would take now."""
        others = [head for head in heads if head.route.formation_id != formation_id]
        loads = dict(self._loads(""))
        promised = {}
        for name in self.names(formation_id):
            needs, had = Needs.of(entries[name].request), entries[name].numerics_class
            before = self._promised.get(name, "")
            head = best_head(needs, had, others, loads, _NOTHING, goes_on=True, promised=before)
            if head is not None and head.numerics_class == had:
                promised[name], there = head, head.route.formation_id
                self._promised[name] = there
                loads[there] = loads.get(there, 0) + 1
        return promised

    def promise_onward(
        self, name: str, entry: JournalEntry, heads: Sequence[ServingHead]
    ) -> ServingHead | None:
        """Where a generation that begins will rather be handed on to, at a head of its arithmetic;
        None where it is not handed on, or none would take it now."""
        names = self._names.get(entry.formation_id, ())
        began = next((h for h in heads if h.route.formation_id == entry.formation_id), None)
        if name not in names or began is None or not began.route.hands_on:
            return None
        loads = Counter(self._loads(entry.pipeline_id if began.onward else ""))
        loads.update(self._promised[other] for other in names if other in self._promised)
        others, had = [head for head in heads if head is not began], entry.numerics_class
        head = best_head(Needs.of(entry.request), had, others, loads, began.onward, goes_on=True)
        if head is None or head.phase is PipelinePhase.PREFILL or head.numerics_class != had:
            return None
        self._promised[name] = head.route.formation_id
        return head

    def _loads(self, began_at: str) -> Mapping[str, int]:
        """Generations that run, by formation; of those that a pipeline has handed on, where one is
        named."""
        if began_at:
            return self._handed_on.loads(began_at)
        return {formation_id: len(names) for formation_id, names in self._names.items()}
