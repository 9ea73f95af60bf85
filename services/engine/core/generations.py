"""The life of every generation at a head: queued, running, sealing, sealed, finished, fenced.

Methods take the time and return actions. Frames and checkpoints are pulled (`next_frame`,
`take_checkpoints`), so a slow reader or a controller that is away costs no memory: what they have
not had lies in the token runs anyway.

A generation is parked, drained and moved in one way: its sequences leave the batch, the last step
in flight comes back, the head seals. Whoever wants to go on asks the controller for an epoch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from services.common.errors import (
    AlreadyExists,
    Cancelled,
    Diverged,
    FailedPrecondition,
    ResourceExhausted,
    StaleEpoch,
    Superseded,
)
from services.common.exchange import (
    Checkpoint,
    CheckpointRefusal,
    CheckpointResult,
    Closed,
    CloseReason,
    Frame,
    GenerateCall,
    Left,
    MovedBy,
    Phase,
)
from services.common.generation import CancelReason, FinishReason, finish_at
from services.engine.core.actions import (
    Action,
    DropSequence,
    KeepBlocks,
    NewToken,
    SequenceKey,
    StartSequence,
    StopSequence,
    Wake,
    WakeCheckpoints,
)
from services.engine.core.checkpoints import CLOSE_REASONS, due_checkpoints
from services.engine.core.head_settings import HeadSettings
from services.engine.core.held import Choice, HeldGeneration, Life, StreamReader
from services.engine.core.held_index import HeldIndex
from services.engine.core.recent import Recent


class Generations:
    """All generations whose head this process is."""

    def __init__(self, incarnation: str, settings: HeadSettings) -> None:
        self.incarnation = incarnation
        self.settings = settings
        self.step = 0
        self.diverged = 0
        """Generations ended because two holders of one position disagreed."""
        self._formation_id = ""
        self._numerics_class = ""
        self._drain_began_s: float | None = None
        self._sealed: set[str] = set()
        """Generations that the drain has sealed."""
        self._held = HeldIndex()
        self._readers: dict[int, StreamReader] = {}
        self._past = Recent[int](settings.keep_s, settings.max_remembered)
        """Generations no longer held: their last epoch here."""
        self._cancelled = Recent[None](settings.keep_s, settings.max_remembered)

    # Formations

    def form(self, formation_id: str, numerics_class: str, now_s: float) -> list[Action]:
        """This process heads a formation from now on (dissolves the one before)."""
        if formation_id == self._formation_id:
            return []
        actions = self.dissolve(self._formation_id, now_s)
        self._formation_id = formation_id
        self._numerics_class = numerics_class
        self._drain_began_s = None
        self._sealed.clear()
        return actions

    def dissolve(self, formation_id: str, now_s: float) -> list[Action]:
        """The formation is gone: seals what is known, closes readers with `dissolved`."""
        actions: list[Action] = []
        if not formation_id or formation_id != self._formation_id:
            return actions
        self._formation_id = ""
        for held in self._held.values():
            actions += map(DropSequence, held.keys_in_batch)
            for choice in held.choices:
                choice.in_batch = False
            if held.life in (Life.LIVE, Life.SEALING):
                held.close(Life.SEALED, CloseReason.DISSOLVED, now_s)
                actions += self._tell(held)
        return actions

    def drain(self, formation_id: str, now_s: float, running: Collection[str] = ()) -> list[Action]:
        """Seals every generation but those `running` behind its last step in flight; readers get
        `moved`. New calls are refused from the first drain on. Poll `drained` for the end. Raises
        FailedPrecondition for another formation."""
        if formation_id != self._formation_id:
            raise FailedPrecondition("not the head of this formation", field="formation_id")
        live = [
            held
            for name, held in self._held.items()
            if held.life is Life.LIVE and name not in running
        ]
        if live or self._drain_began_s is None:
            self._drain_began_s = now_s
        return [action for held in live for action in self._seal(held, now_s)]

    def sealing(self, formation_id: str) -> bool:
        """Some generation of it waits for its last step."""
        return any(
            held.life is Life.SEALING and held.formation_id == formation_id
            for held in self._held.values()
        )

    @property
    def sealed_count(self) -> int:
        """Generations that the drain has sealed by now."""
        return len(self._sealed)

    def to_go_on(self) -> list[StartSequence]:
        """What others will start of those that the drain has sealed, those first that are nearest
        to their end."""
        sealed = [held for name, held in self._held.items() if name in self._sealed]
        starts = [start for held in sealed for start in held.to_go_on()]
        return sorted(starts, key=lambda one: one.request.sampling.max_tokens - len(one.output_ids))

    def running(self, generation_ids: Collection[str]) -> list[SequenceKey]:
        """Sequences of those of them that run, those first that are nearest to their end."""
        if len(generation_ids) == 1:  # of many that are read, each is asked about by itself
            (name,) = generation_ids
            one = self._held.get(name)
            asked = [] if one is None else [(name, one)]
        else:
            asked = list(self._held.items())
        left: dict[SequenceKey, int] = {
            held.key(index): held.request.sampling.max_tokens - len(choice.run)
            for name, held in asked
            if name in generation_ids and held.life is Life.LIVE
            for index, choice in enumerate(held.choices)
            if choice.in_batch
        }
        return sorted(left, key=left.__getitem__)

    def alone(self) -> list[SequenceKey]:
        """Sequences of generations that run and have no other."""
        running = [held.keys_in_batch for held in self._held.values() if held.life is Life.LIVE]
        return [keys[0] for keys in running if len(keys) == 1]

    def drained(self, formation_id: str, now_s: float, running: Collection[str] = ()) -> int | None:
        """How many generations the drain has sealed, once the journal has answered for each of
        them and their readers have had everything (or `drain_readers_s` has passed); those that go
        on `running` are not waited for."""
        mine = [
            held
            for name, held in self._held.items()
            if held.formation_id == formation_id
            and not (held.life is Life.LIVE and name in running)
        ]
        if any(not held.journal_done for held in mine):
            return None
        began_s = self._drain_began_s
        waited = began_s is None or now_s - began_s >= self.settings.drain_readers_s
        if not waited and any(held.reader is not None for held in mine):
            return None
        return len(self._sealed)

    # Readers

    def generate(self, reader_id: int, call: GenerateCall, now_s: float) -> list[Action]:
        """Runs a generation, or attaches this reader to it at its epoch (ending the one before).

        Raises FailedPrecondition (other formation, draining), StaleEpoch, Cancelled, Diverged,
        AlreadyExists (the id names another request), InvalidArgument, ResourceExhausted, and
        Superseded for who reads for nobody where a client's reader came first.
        """
        generation_id = call.request.generation_id
        if generation_id in self._cancelled:
            raise Cancelled("the generation was cancelled")
        held = self._held.get(generation_id)
        last_epoch = held.epoch if held else self._past.get(generation_id) or 0
        if call.epoch < last_epoch or (held is None and call.epoch == last_epoch):
            raise StaleEpoch("this head is done with that epoch", field="epoch")
        if held is not None and call.epoch == held.epoch:
            return self._attach(held, reader_id, call, now_s)
        if call.formation_id != self._formation_id or self._drain_began_s is not None:
            raise FailedPrecondition("the formation takes no calls", field="formation_id")
        if held is None and self._held.unjournaled >= self.settings.max_unjournaled:
            raise ResourceExhausted(
                "the journal is too far behind to begin another generation", field="generation_id"
            )
        begun = HeldGeneration(call, self.incarnation, self._numerics_class, now_s)
        actions: list[Action] = []
        if held is None and self.open_generations >= self.settings.max_generations:
            actions += self._park_longest_unread(now_s)
        if held is not None:
            actions += self._give_up(held, CloseReason.SUPERSEDED, now_s)
        self._held.put(begun)
        self._readers[reader_id] = begun.attach(reader_id, call, now_s)
        for index, choice in enumerate(begun.choices):
            if choice.finish is None:
                choice.in_batch = True
                ids = tuple(choice.run.ids)
                key, source, holder = begun.key(index), call.kv_source, call.prefix_holder
                actions.append(StartSequence(key, begun.request, ids, source, holder))
        return [*actions, *self._finish_if_ended(begun, now_s), Wake(reader_id), WakeCheckpoints()]

    def _attach(
        self, held: HeldGeneration, reader_id: int, call: GenerateCall, now_s: float
    ) -> list[Action]:
        if call.formation_id != held.formation_id:
            raise StaleEpoch("the epoch began in another formation", field="formation_id")
        if replace(call.request, numerics_class=held.request.numerics_class) != held.request:
            raise AlreadyExists("another request has this id", field="generation_id")
        held.compare(call.held)
        if call.for_nobody and held.has_client:
            raise Superseded("a client reads it")
        actions: list[Action] = []
        if held.reader is not None:
            held.reader.closing = CloseReason.SUPERSEDED
            actions.append(Wake(held.reader.reader_id))
        actions += self._set_unread(held, False)
        self._readers[reader_id] = held.attach(reader_id, call, now_s)
        self._held.changed(held)
        return [*actions, Wake(reader_id)]

    def detach(self, reader_id: int, now_s: float) -> list[Action]:
        """The reader's stream is gone, however it ended; any id may be given, any number of
        times."""
        reader = self._readers.pop(reader_id, None)
        if reader is None or reader.held.reader is not reader:
            return []
        held = reader.held
        held.reader = None
        held.unread_since_s = now_s
        return self._left(held, now_s)

    def client_gone(self, left: Left, now_s: float) -> list[Action]:
        """A reader's client is gone. Where no other reader has come, the generation yields, or is
        parked if nobody can resume it, whether or not the reader's stream stands: a crowd's are a
        while in closing. Known or not, the answer is the same."""
        held = self._held.get(left.generation_id)
        if held is None or held.epoch != left.epoch or held.read_by != left.reader:
            return []
        held.client_gone = left.resumable
        return self._left(held, now_s)

    def is_silent(self, reader_id: int, now_s: float) -> bool:
        """A sign of life is due to this reader; look at least every `frame_interval_s / 2`."""
        reader = self._readers.get(reader_id)
        return reader is not None and reader.is_silent(self.settings, now_s)

    def next_frame(self, reader_id: int, now_s: float) -> Frame | None:
        """The next frame to send; None when none is due. A Closed is the last: end the stream
        behind it. Call it on every Wake, and when `is_silent`, until it gives None."""
        reader = self._readers.get(reader_id)
        if reader is None:
            return None
        frame = reader.next_frame(self.step, self.settings, now_s)
        if isinstance(frame, Closed):
            self.detach(reader_id, now_s)  # what is closed is not live: nothing to do for it
        return frame

    def cancel(
        self, generation_id: str, choice: int | None, reason: CancelReason, now_s: float
    ) -> list[Action]:
        """Ends a generation or one choice; known or not, the answer is the same."""
        held = self._held.get(generation_id)
        if reason is CancelReason.CLIENT and choice is None:
            self._cancelled.keep(generation_id, None, now_s)
            return self._give_up(held, CloseReason.CANCELLED, now_s) if held else []
        if held is None or held.life not in (Life.LIVE, Life.SEALING):
            return []
        finish = FinishReason.STOP if reason is CancelReason.STOP else FinishReason.CANCELLED
        actions: list[Action] = []
        for index in range(len(held.choices)) if choice is None else (choice,):
            if held.choice(index).finish is None:
                actions += self._finish_choice(held, index, finish)
        return [*actions, *self._finish_if_ended(held, now_s), *self._tell(held)]

    # Scheduler

    def sequence_phase(self, key: SequenceKey, phase: Phase) -> None:
        """The scheduler moved a sequence; it starts as QUEUED."""
        found = self._find(key)
        if found is not None:
            found[1].phase = phase

    def named(self, key: SequenceKey, names: list[bytes]) -> None:
        """What the blocks of a sequence that stops are named, as far as that is known by now."""
        found = self._find(key)
        if found is not None and found[0].life is Life.SEALING:
            found[1].names = names

    def moved(self, key: SequenceKey, by: MovedBy) -> None:
        """What a sequence goes on from was brought to it, or is computed."""
        found = self._find(key)
        if found is not None and found[0].goes_on:
            found[0].moved_by = by if by == "kv" else found[0].moved_by or by

    def rounded(self, owners: Collection[bytes]) -> None:
        """Blocks that these own lie in the caches as they were rounded: what their generations
        sample from now on is what nobody else computes."""
        for held in self._held.values() if owners else ():
            held.inexact = held.inexact or held.owner in owners

    def stepped(self, step: int, tokens: Sequence[NewToken], now_s: float) -> list[Action]:
        """A step came back, perhaps without tokens. Tokens of unknown keys count for nothing."""
        self.step = step
        actions: list[Action] = []
        for token in tokens:
            found = self._find(token.key)
            if found is None or found[1].finish is not None:
                continue
            held, choice = found
            if held.life not in (Life.LIVE, Life.SEALING):
                continue
            if not (token.stuck or self._appended(choice, token)):
                self.diverged += 1
                actions += self._give_up(held, CloseReason.DIVERGED, now_s)
                continue
            finish = FinishReason.GRAMMAR if token.stuck else None
            finish = finish or finish_at(held.request, token.position, token.token_id)
            if finish is not None:
                actions += self._finish_choice(held, token.key.choice, finish)
                actions += self._finish_if_ended(held, now_s)
            if held.life is Life.LIVE and held.is_handed_on:
                actions += self._seal(held, now_s)
            self._held.changed(held)
            if held.reader is not None:
                actions.append(Wake(held.reader.reader_id))
        return list(dict.fromkeys(actions))

    def sequence_stopped(self, key: SequenceKey, now_s: float) -> list[Action]:
        """No step with this sequence is in flight any more; answers StopSequence."""
        found = self._find(key)
        if found is None:
            return []
        held, choice = found
        choice.in_batch = False
        return self._seal_if_out_of_batch(held, now_s)

    # Journal

    def take_checkpoints(self, message: int, now_s: float) -> tuple[Checkpoint, ...]:
        """Checkpoints to send now in the message of this number, at most one unanswered a
        generation. Call it on WakeCheckpoints and every `checkpoint_interval_s` while the stream
        to the journal stands, until it gives nothing more."""
        return due_checkpoints(self._held.owing, self.settings, message, now_s)

    def checkpoint_results(
        self, message: int, results: Iterable[CheckpointResult], now_s: float
    ) -> list[Action]:
        """The journal's answers to a message. A refusal fences: the generation stops here."""
        actions: list[Action] = []
        for result in results:
            held = self._held.get(result.generation_id)
            if held is None or held.epoch != result.epoch:
                continue
            if result.refusal is None:
                held.answered(message, result)
                self._held.changed(held)
                if held.urgent:
                    actions.append(WakeCheckpoints())
                continue
            if result.refusal is CheckpointRefusal.ENDED:
                self._cancelled.keep(result.generation_id, None, now_s)
            self.diverged += result.refusal is CheckpointRefusal.DIVERGED
            actions += self._give_up(held, CLOSE_REASONS[result.refusal], now_s)
        return actions

    def checkpoint_stream_opened(self) -> None:
        """A new stream to the journal stands: everything unanswered is sent again."""
        for held in self._held.values():
            held.resend()
            self._held.changed(held)

    def tick(self, now_s: float) -> list[Action]:
        """Lets what nobody reads yield, parks it, forgets what has ended; call it every 0.1 s."""
        actions: list[Action] = []
        settings = self.settings
        for generation_id, held in list(self._held.items()):
            if held.reader is not None:
                continue
            if held.life is Life.LIVE:
                unread_s = now_s - held.unread_since_s
                if unread_s >= settings.detach_s and not held.request.runs_unread:
                    actions += self._park(held, now_s)
                elif unread_s >= settings.yield_s:
                    actions += self._set_unread(held, True)
            elif held.journal_done and (
                held.life is not Life.FINISHED or now_s - held.ended_s >= settings.keep_s
            ):
                self._held.remove(generation_id)
                self._past.keep(generation_id, held.epoch, now_s)
        self._past.forget(now_s)
        self._cancelled.forget(now_s)
        return actions

    @property
    def open_generations(self) -> int:
        """Generations queued or running."""
        return self._held.open

    # Inside

    def _find(self, key: SequenceKey) -> tuple[HeldGeneration, Choice] | None:
        held = self._held.get(key.generation_id)
        if held is None or held.epoch != key.epoch or held.life is Life.FENCED:
            return None
        return held, held.choices[key.choice]

    @staticmethod
    def _appended(choice: Choice, token: NewToken) -> bool:
        """False where it is not what the choice lacks next."""
        logprobs = () if token.logprob is None else (token.logprob,)
        ids, cached = (token.token_id,), token.cached_tokens
        try:
            return not choice.run.append(token.position, ids, logprobs, cached).gap
        except Diverged:
            return False

    def _finish_choice(
        self, held: HeldGeneration, index: int, finish: FinishReason
    ) -> list[Action]:
        choice = held.choices[index]
        choice.finish = finish
        return [StopSequence(held.key(index))] if choice.in_batch else []

    def _finish_if_ended(self, held: HeldGeneration, now_s: float) -> list[Action]:
        if not held.ended:
            return []
        held.close(Life.FINISHED, CloseReason.FINISHED, now_s)
        return self._tell(held)

    def _left(self, held: HeldGeneration, now_s: float) -> list[Action]:
        if held.client_gone is None:
            return []  # perhaps a blip
        stays = held.client_gone or held.request.runs_unread
        return self._set_unread(held, True) if stays else self._park(held, now_s)

    def _set_unread(self, held: HeldGeneration, unread: bool) -> list[Action]:
        actions = held.set_unread(unread)
        self._held.changed(held)
        return actions

    def _park(self, held: HeldGeneration, now_s: float) -> list[Action]:
        """Seals what nobody reads; the journal keeps its ids for whoever comes back."""
        if held.journal_done:
            return []
        held.unread = True
        seals = self._seal(held, now_s) if held.life is Life.LIVE else []
        self._held.changed(held)
        return [*seals, WakeCheckpoints()]

    def _park_longest_unread(self, now_s: float) -> list[Action]:
        """Makes room. Raises ResourceExhausted when everything open is read."""
        unread = [
            held
            for held in self._held.values()
            if held.life is Life.LIVE and held.unread and not held.request.runs_unread
        ]
        if not unread:
            raise ResourceExhausted("too many open generations", field="generation_id")
        return self._park(min(unread, key=lambda h: h.unread_since_s), now_s)

    def _seal(self, held: HeldGeneration, now_s: float) -> list[Action]:
        held.life = Life.SEALING
        return [*map(StopSequence, held.keys_in_batch), *self._seal_if_out_of_batch(held, now_s)]

    def _seal_if_out_of_batch(self, held: HeldGeneration, now_s: float) -> list[Action]:
        if held.life is not Life.SEALING or held.in_batch:
            return []
        keeps: list[Action] = []
        reason = CloseReason.MOVED
        if held.is_handed_on:
            keeps, reason = [KeepBlocks(tuple(held.to_go_on()))], CloseReason.HANDED_ON
        held.close(Life.SEALED, reason, now_s)
        if self._drain_began_s is not None:
            self._sealed.add(held.request.generation_id)
        return [*keeps, *self._tell(held)]

    def _give_up(self, held: HeldGeneration, reason: CloseReason, now_s: float) -> list[Action]:
        """Nothing of it counts any more."""
        held.close(Life.FENCED, reason, now_s)
        return [*map(StopSequence, held.keys_in_batch), *self._tell(held)]

    def _tell(self, held: HeldGeneration) -> list[Action]:
        """Its reader and the journal, of what has just become of it."""
        self._held.changed(held)
        readers = [] if held.reader is None else [Wake(held.reader.reader_id)]
        return [*readers, *([] if held.journal_done else [WakeCheckpoints()])]
