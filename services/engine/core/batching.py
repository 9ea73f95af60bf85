"""A head's generations and the batch that runs them, tied together.

Whatever happens (a call, a step that came back, an answer of the journal) becomes a call of the
generations; what they ask of the scheduler is done at once, and then every step that may start
does. What is left for the edge is what this answers with.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from services.common.exchange import GenerateCall, KvSource, Phase
from services.common.prefix import owner_of, root_of
from services.engine.backend import BLOCK_SIZE, Sampled
from services.engine.core.actions import (
    Action,
    DropSequence,
    KeepBlocks,
    SequenceKey,
    SetUnread,
    StartSequence,
    StopSequence,
    Wake,
    WakeCheckpoints,
)
from services.engine.core.copying import Ahead, Copying
from services.engine.core.generations import Generations
from services.engine.core.incoming import KvFetch
from services.engine.core.lead import Lead, Leaving
from services.engine.core.scheduler import Step, StepResult


@dataclass(frozen=True, slots=True)
class Due:
    """What is for the edge to do now, steps first: they compute while readers are served."""

    steps: tuple[Step, ...] = ()
    """To be handed to the first stage, in order."""
    readers: tuple[int, ...] = ()
    """`Generations.next_frame` has something for these."""
    checkpoints: bool = False
    """`Generations.take_checkpoints` has something that should not wait."""
    begins: bool = False
    """Sequences were begun."""
    sampled: int = 0
    """Tokens that a step brought."""
    accepted: int = 0
    """Those of them that follow a guess that was right."""
    fetches: tuple[KvFetch, ...] = ()
    """To be carried out by every stage; answer each with `fetched`."""
    keeps: tuple[Leaving, ...] = ()
    """To be kept by every stage; answer each with `left`."""
    waited_s: tuple[float, ...] = ()
    """Of each sequence that came into the batch for the first time: how long it waited for that."""


class Batching:
    """Runs the generations in the batch of the formation that is led at the time."""

    def __init__(self, generations: Generations) -> None:
        self.generations = generations
        self.lead: Lead | None = None
        self._queued_s: dict[SequenceKey, float] = {}
        """Since when sequences wait that were not in the batch yet."""

    @property
    def has_work(self) -> bool:
        """Steps are to be made, or to come back."""
        return self.lead is not None and self.lead.scheduler.has_work

    def form(self, lead: Lead, numerics_class: str, now_s: float) -> Due:
        """Heads a formation that stands."""
        self.lead = lead
        actions = self.generations.form(lead.formation_id, numerics_class, now_s)
        return self._carry_out(actions, now_s)

    def dissolve(self, formation_id: str, now_s: float) -> Due:
        """Seals what is known and tells every reader; nothing in flight counts any more."""
        if self.lead is None or self.lead.formation_id != formation_id:
            return Due()
        actions = self.generations.dissolve(formation_id, now_s)
        self.lead = None
        self._queued_s.clear()
        return self.act(actions, now_s)

    def generate(self, reader_id: int, call: GenerateCall, now_s: float) -> Due:
        """Runs a generation, or attaches to it. Raises what Bounds.check and Generations.generate
        do."""
        lead = self.lead
        if lead is not None and lead.formation_id == call.formation_id:
            lead.bounds.check(call)
        return self.act(self.generations.generate(reader_id, call, now_s), now_s)

    def came_back(self, step: int, tokens: Sequence[Sampled], now_s: float) -> Due:
        """A step of the formation that is led went through all stages."""
        lead = self.lead
        if lead is None:
            return Due()
        took_s = lead.pace.came_back(step, now_s)
        lead.gauge.came_back(step, took_s, now_s)
        result = lead.scheduler.complete(step, tokens, took_s)
        actions = self.generations.stepped(step, result.tokens, now_s)
        for action in actions:
            if isinstance(action, StopSequence):
                sequence = lead.scheduler.find(action.key)
                if sequence is not None:
                    lead.gauge.answered(sequence.outputs, at_limit=sequence.most_left <= 0)
        for key in result.stopped:
            actions += self.generations.sequence_stopped(key, now_s)
        return self._carry_out(actions, now_s, came_back=result)

    def fetched(
        self,
        fetch: KvFetch,
        count: int | None,
        now_s: float,
        size_bytes: int = 0,
        took_s: float = 0.0,
        *,
        rounded: bool = False,
    ) -> Due:
        """The first `count` blocks of a fetch of the formation that is led hold what they should,
        at every stage, some of them `rounded`; None: some stage did not answer. So many bytes came
        from other processes for it, in that time."""
        lead = self.lead
        if lead is None:
            return Due()
        if fetch.holder is not None:
            lead.prefixes.came(fetch.holder, size_bytes, took_s, now_s)
        if rounded:
            self.generations.rounded(fetch.owners(count))
        due: list[Action] = []
        for start, unread in lead.incoming.fetched(fetch.number, count, rounded=rounded):
            if count:
                self.generations.moved(start.key, "kv")
            due.append(start)
            if unread:
                due.append(SetUnread(start.key, True))
        return self._carry_out(due, now_s) if due else self.given_back(now_s)

    def ended(self, fetch: KvFetch, now_s: float) -> Due:
        """No stage writes any more to what a fetch of the formation that is led was to fill, and
        some stage had not answered."""
        if self.lead is None:
            return Due()
        self.lead.incoming.ended(fetch.number)
        return self.given_back(now_s)

    def sealed(self, replayed: Container[str]) -> list[StartSequence]:
        """Sequences that the drain has sealed, those first that are nearest to their end, but of
        generations that are `replayed`."""
        starts = self.generations.to_go_on()
        return [start for start in starts if start.key.generation_id not in replayed]

    @contextmanager
    def kept(self, sealed: Iterable[StartSequence]) -> Iterator[Leaving]:
        """The blocks of these, in their order; no step writes to one until every stage has
        answered."""
        if self.lead is None:
            yield Leaving(())
            return
        leaving = Leaving.of(self.lead, sealed)
        try:
            yield leaving
        finally:
            leaving.give_back()

    @contextmanager
    def offered(self, names: Sequence[bytes]) -> Iterator[Leaving]:
        """The blocks of the prefix cache that hold the first of these names; no step writes to one
        until every stage has answered."""
        if self.lead is None:
            yield Leaving(())
            return
        found = self.lead.scheduler.offerable(names)
        leaving = Leaving.taken(self.lead, tuple(zip(names, found, strict=False)))
        try:
            yield leaving
        finally:
            leaving.give_back()

    @contextmanager
    def ahead(self, copying: Copying, at_most: int) -> Iterator[tuple[Ahead, Leaving] | None]:
        """Blocks that go ahead next, at most so many. None: there is no more to be done."""
        lead, ahead = self.lead, None
        if lead is not None:
            keys = self.generations.running(copying.generation_ids)
            ahead = copying.next(keys, lead.scheduler.full_blocks, at_most)
        if lead is None or ahead is None:
            yield None
            return
        leaving = Leaving.taken(lead, ahead.blocks)
        try:
            yield ahead, leaving
        finally:
            leaving.give_back()

    def take_ahead(
        self, chains: Sequence[Sequence[bytes]], source: KvSource
    ) -> tuple[int | None, Due]:
        """Names of blocks, a chain for each sequence that is to come here: what the caches lack of
        them, as far as there is room, is in `Due.fetches` once all steps that had departed are
        back. The number of that fetch; None: there is none."""
        if self.lead is None:
            return None, Due()
        number = self.lead.incoming.take_ahead(chains, source)
        return number, Due(fetches=self.lead.incoming.due())

    def awaits(self, number: int | None) -> bool:
        """The blocks of this fetch are still to come to the formation that is led."""
        return self.lead is not None and self.lead.incoming.awaits(number)

    def within_blocks(self) -> frozenset[str]:
        """Generations of one sequence that decodes, whose last block will not be full when the
        steps that have departed are back: who goes on with one computes what is in that block, and
        a row takes the longer the further behind it is."""
        if self.lead is None:
            return frozenset()
        found = map(self.lead.scheduler.find, self.generations.alone())
        return frozenset(
            sequence.key.generation_id
            for sequence in found
            if sequence is not None
            and sequence.phase is Phase.DECODE
            and sequence.computed % BLOCK_SIZE
        )

    def left(self, leaving: Leaving, now_s: float) -> Due:
        """Stages were asked to keep these, and have answered or not, or do so no more."""
        leaving.give_back()
        if self.lead is None or self.lead.scheduler is not leaving.scheduler:
            return Due()
        return self.given_back(now_s)

    def given_back(self, now_s: float) -> Due:
        """Blocks were: there may be room for what waited."""
        steps, waited_s = self._steps(now_s)
        return Due(steps, waited_s=waited_s)

    def overdue(self, now_s: float) -> bool:
        """A step should have been back; to be asked every GLANCE_S or sooner."""
        return self.lead is not None and self.lead.pace.overdue(now_s)

    def act(self, actions: Iterable[Action], now_s: float) -> Due:
        """Does what the generations ask."""
        return self._carry_out(actions, now_s)

    def _carry_out(
        self, actions: Iterable[Action], now_s: float, came_back: StepResult | None = None
    ) -> Due:
        lead, keeps = self.lead, list[Leaving]()
        waiting, readers, checkpoints, begins = list(actions), [], False, False
        changed = came_back is not None
        for action in waiting:  # which grows while it is walked
            if isinstance(action, Wake):
                readers.append(action.reader_id)
                continue
            if isinstance(action, WakeCheckpoints):
                checkpoints = True
                continue
            changed = True
            if isinstance(action, StopSequence | DropSequence):
                self._queued_s.pop(action.key, None)
                if lead is not None:
                    lead.incoming.stop(action.key)
            if isinstance(action, StopSequence):
                stops = lead.scheduler.find(action.key) if lead is not None else None
                if stops is not None:
                    self.generations.named(action.key, stops.names)
                if lead is None or lead.scheduler.stop(action.key):
                    waiting += self.generations.sequence_stopped(action.key, now_s)
            elif lead is not None:
                if isinstance(action, KeepBlocks):
                    keeps.append(Leaving.of(lead, action.sequences))
                    keeps[-1].busy = True
                elif isinstance(action, StartSequence):
                    begins = True
                    self._queued_s.setdefault(action.key, now_s)
                    if lead.incoming.came_rounded(action):
                        self.generations.rounded({owner_of(root_of(action.request))})
                    if lead.incoming.holds_back(action, now_s):
                        continue
                    ahead = lead.incoming.came_ahead(action)
                    self.generations.moved(action.key, "kv" if ahead else "replay")
                    lead.scheduler.start(
                        action.key, action.request, action.output_ids, action.names
                    )
                elif isinstance(action, SetUnread):
                    lead.scheduler.set_unread(action.key, action.unread)
                    lead.incoming.set_unread(action.key, action.unread)
                elif isinstance(action, DropSequence):
                    lead.scheduler.drop(action.key)
        steps, waited_s = self._steps(now_s) if changed else ((), ())  # most ticks change nothing
        sampled, accepted = 0, 0
        if came_back is not None:
            sampled, accepted = len(came_back.tokens), came_back.accepted
        fetches = lead.incoming.due() if changed and lead is not None else ()
        return Due(
            steps,
            tuple(readers),
            checkpoints,
            begins,
            sampled,
            accepted,
            fetches,
            tuple(keeps),
            waited_s,
        )

    def _steps(self, now_s: float) -> tuple[tuple[Step, ...], tuple[float, ...]]:
        """Those that may start, and how long what came into the batch by them had waited."""
        lead, steps, waited_s = self.lead, [], []
        if lead is None:
            return (), ()
        while (step := lead.scheduler.next_step()) is not None:
            lead.pace.departed(step.number, len(step.token_ids), now_s)
            lead.gauge.departed(step, now_s)
            steps.append(step)
        for key, phase in lead.scheduler.take_phases().items():
            self.generations.sequence_phase(key, phase)
            if phase is not Phase.QUEUED and key in self._queued_s:
                waited_s.append(now_s - self._queued_s.pop(key))
        return tuple(steps), tuple(waited_s)
