"""What the index says is what a look at every generation would say, whatever happened to them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.common.errors import ShuntError
from services.common.exchange import (
    CheckpointRefusal,
    CheckpointResult,
    GenerateCall,
    Left,
)
from services.common.generation import CancelReason, GenerationRequest, ModelRef, Sampling
from services.engine.core.actions import NewToken, SequenceKey, StopSequence
from services.engine.core.generations import Generations
from services.engine.core.head_settings import HeadSettings
from services.engine.core.held import Life

REQUEST = GenerationRequest(
    "", ModelRef("m", "d"), (1, 2), Sampling(max_tokens=4, eos_token_ids=(9,))
)
NAMES = st.sampled_from("abc")
SETTINGS = HeadSettings(max_generations=2, keep_s=3.0, checkpoints_at_once=2)


class Heads(RuleBasedStateMachine):
    """A head to which anything may happen, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Generations("i", SETTINGS)
        self.head.form("f", "exact", 0.0)
        self.now_s = 0.0
        self.readers = 0
        self.message = 0
        self.unanswered: list[tuple[int, CheckpointResult]] = []
        self.read("a", 1, end=False)
        self.read("b", 1, end=False)
        self.settle()

    @rule(name=NAMES, epoch=st.integers(1, 2), end=st.booleans())
    def read(self, name: str, epoch: int, end: bool) -> None:
        self.readers += 1
        request = replace(REQUEST, generation_id=name, choices=2 if name == "a" else 1)
        call = GenerateCall(request, epoch, "f", (), (0,), reader=name)
        try:
            self.head.generate(self.readers, call, self.now_s)
        except ShuntError:
            return
        if end:
            self.head.detach(self.readers, self.now_s)

    @rule(name=NAMES, resumable=st.booleans())
    def leave(self, name: str, resumable: bool) -> None:
        self.head.client_gone(Left(name, 1, name, resumable), self.now_s)

    @rule(name=NAMES, token=st.sampled_from((5, 9)), stuck=st.booleans())
    def step(self, name: str, token: int, stuck: bool) -> None:
        held = self.head._held.get(name)
        if held is not None:
            position = held.lengths[0]
            key = SequenceKey(name, held.epoch, 0)
            new = NewToken(key, position, token, stuck=stuck)
            actions = self.head.stepped(self.head.step + 1, [new], self.now_s)
            for action in actions:
                if isinstance(action, StopSequence):
                    self.head.sequence_stopped(action.key, self.now_s)

    @rule(name=NAMES)
    def stop(self, name: str) -> None:
        held = self.head._held.get(name)
        if held is not None:
            for key in held.keys_in_batch:
                self.head.sequence_stopped(key, self.now_s)

    @rule(name=NAMES, choice=st.sampled_from((None, 0)), reason=st.sampled_from(CancelReason))
    def cancel(self, name: str, choice: int | None, reason: CancelReason) -> None:
        self.head.cancel(name, choice, reason, self.now_s)

    @rule()
    def tell(self) -> None:
        self.message += 1
        for taken in self.head.take_checkpoints(self.message, self.now_s):
            held = self.head._held[taken.generation_id]
            result = CheckpointResult(taken.generation_id, taken.epoch, held.lengths)
            self.unanswered.append((self.message, result))

    @rule()
    def settle(self) -> None:
        """The journal has all there is, so that what comes next is the only news."""
        self.now_s += 1.0
        for _ in range(8):
            self.tell()
            while self.unanswered:
                self.answer(None)

    @rule(refusal=st.sampled_from((None, None, *CheckpointRefusal)))
    def answer(self, refusal: CheckpointRefusal | None) -> None:
        if self.unanswered:
            message, result = self.unanswered.pop(0)
            answered = replace(result, refusal=refusal)
            self.head.checkpoint_results(message, [answered], self.now_s)

    @rule(open_again=st.booleans())
    def lose_the_stream(self, open_again: bool) -> None:
        self.unanswered.clear()
        if open_again:
            self.message = 0
            self.head.checkpoint_stream_opened()

    @rule(seconds=st.sampled_from((0.1, 1.0, 11.0)))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.head.tick(self.now_s)

    @rule(formation=st.sampled_from("ff_"))
    def dissolve(self, formation: str) -> None:
        self.head.dissolve(formation, self.now_s)
        self.head.form("f", "exact", self.now_s)

    @invariant()
    def counts_are_right(self) -> None:
        every = list(self.head._held.values())
        open_ = sum(held.life in (Life.LIVE, Life.SEALING) for held in every)
        assert self.head.open_generations == open_
        assert self.head._held.unjournaled == sum(not held.journal_done for held in every)

    @invariant()
    def who_owes_something_is_found(self) -> None:
        found = {held.request.generation_id for held in self.head._held.owing}
        assert found == {name for name, held in self.head._held.items() if held.owes}
        for later_s in (0.0, 0.06, 1.0):
            due = {
                name
                for name, held in self.head._held.items()
                if held.due(
                    SETTINGS.checkpoint_interval_s,
                    SETTINGS.checkpoint_timeout_s,
                    self.now_s + later_s,
                )
            }
            assert due <= found


TestHeads = Heads.TestCase
