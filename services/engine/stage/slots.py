"""The sequences open at a stage, what a batch may ask of them, and their next tokens."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgument, ShuntError
from services.common.generation import SAMPLING, Grammar
from services.engine.backend import (
    BLOCK_SIZE,
    Batch,
    Hidden,
    Sampled,
    SequenceOpen,
    SequenceStep,
    StageFacts,
)
from services.engine.stage import sampler
from services.model.grammar import LIBRARY, Guide, LateGrammars, Stuck

_log = logging.getLogger(__name__)

ELEMENT_BYTES: Mapping[str, int] = {"bf16": 2, "fp32": 4}
"""Of a number in a row between stages."""


class Slots:
    """Every backend asks them before a step and at its end: no batch that cannot be reaches the
    arithmetic, and tokens are drawn in one way."""

    def __init__(self, facts: StageFacts, grammars: LateGrammars | None = None) -> None:
        """Without `grammars` no sequence may ask for one."""
        self._facts, self._grammars = facts, grammars
        self._states: dict[int, sampler.SlotState] = {}

    def check(self, batch: Batch, rows: Sequence[int] | Hidden, kv_blocks: int) -> None:
        """Raises InvalidArgument for a malformed batch, or for rows that are not of it."""
        self._check_opens(batch)
        self._check_steps(batch, kv_blocks)
        if isinstance(rows, Hidden):
            self._check_hidden(rows)
            count = rows.rows
        else:
            self._check_first(rows)
            count = len(rows)
        if count != batch.rows:
            raise InvalidArgument(f"{count} rows for {batch.rows} positions", field="rows")
        if not isinstance(rows, Hidden):
            _check_drafted(batch, rows)

    def apply(self, batch: Batch) -> None:
        """Closes and opens; the batch was checked. What may follow in it is looked for while its
        logits are computed."""
        for slot in batch.closes:
            self._states.pop(slot, None)
        for opened in batch.opens:
            self._states[opened.slot] = sampler.open_slot(
                opened.sampling,
                opened.choice,
                opened.prompt_ids,
                opened.output_ids,
                self._follows(opened.sampling.grammar),
            )
        if self._grammars is not None and self._facts.last:
            drawn = (self._states[step.slot].follows for step in batch.steps if step.sample)
            self._grammars.look_ahead([each for each in drawn if isinstance(each, Guide)])

    def sample(self, batch: Batch, logits: NDArray[np.float32]) -> tuple[Sampled, ...]:
        """The tokens of each step that samples; `logits` [rows, vocab] are of the batch's
        `asked_rows`. A draw knows nothing of drafts: they only decide whether another follows."""
        sampled, first = [], 0
        for step in batch.steps:
            if not step.sample:
                continue
            state, end = self._states[step.slot], first + 1 + len(step.drafts)
            for row, draft in zip(logits[first:end], (*step.drafts, None), strict=True):
                position = state.length
                try:
                    token_id, logprob = sampler.sample(row, state)
                except Stuck as stuck:
                    told = {"slot": step.slot, "position": position, "reason": stuck.message}
                    _log.warning("a grammar lets nothing follow", extra=told)
                    sampled.append(Sampled(step.slot, position, 0, stuck=True))
                    break
                sampled.append(Sampled(step.slot, position, token_id, logprob))
                if token_id != draft:
                    break
            first = end
        return tuple(sampled)

    def _follows(self, grammar: Grammar | None) -> sampler.Follows | None:
        # Only the last stage draws.
        if grammar is None or self._grammars is None or not self._facts.last:
            return None
        try:
            return self._grammars.begin(grammar.text)
        except ShuntError as error:  # its own end, and not that of the step it opens in
            return _Nowhere(error.message)

    def clear(self) -> None:
        """Forgets every sequence."""
        self._states.clear()

    def _check_opens(self, batch: Batch) -> None:
        vocab = self._facts.vocab_size
        open_slots = self._states.keys() - set(batch.closes)
        for opened in batch.opens:
            if opened.slot in open_slots:
                raise InvalidArgument(f"slot {opened.slot} is taken", field="opens.slot")
            open_slots.add(opened.slot)
            self._check_grammar(opened.sampling.grammar)
            for name, row in SAMPLING.items():
                row.check_ids(getattr(opened.sampling, name), vocab)
            _check_ids(opened.prompt_ids, vocab, "prompt_ids")
            _check_ids(opened.output_ids, vocab, "output_ids")

    def _check_grammar(self, grammar: Grammar | None) -> None:
        if grammar is None or not self._facts.last:
            return
        compiles = "" if self._grammars is None else LIBRARY
        if grammar.library != compiles:
            raise InvalidArgument(
                f"grammars are compiled by {compiles or 'nobody'} here, not by {grammar.library}",
                field="opens.grammar",
            )

    def _check_steps(self, batch: Batch, kv_blocks: int) -> None:
        opened = {each.slot: each for each in batch.opens}
        free = (self._states.keys() - set(batch.closes)) | opened.keys()
        for step in batch.steps:
            if step.slot not in free:
                raise InvalidArgument(f"slot {step.slot} is not open", field="steps.slot")
            free.remove(step.slot)  # at most one step each
            self._check_places(step, kv_blocks)
            self._check_drafts(step)
            if step.sample and self._facts.last:  # the others see no outputs
                prompt, output = self._length(step.slot, opened.get(step.slot))
                known = step.start + step.count - len(step.drafts)
                if known != prompt + output:
                    raise InvalidArgument(
                        f"slot {step.slot} samples behind position {known}, "
                        f"holds {prompt} + {output} ids",
                        field="steps.sample",
                    )

    def _length(self, slot: int, opened: SequenceOpen | None) -> tuple[int, int]:
        if opened is not None:
            return len(opened.prompt_ids), len(opened.output_ids)
        state = self._states[slot]
        return state.prompt_length, state.length

    def _check_places(self, step: SequenceStep, kv_blocks: int) -> None:
        end = step.start + step.count
        most = min(self._facts.context_length, kv_blocks * BLOCK_SIZE)
        if step.start < 0 or step.count < 1 or end > most:
            raise InvalidArgument(
                f"positions {step.start} to {end} must be 1 or more, up to {most}",
                field="steps.start",
            )
        if len(step.block_table) * BLOCK_SIZE < end:
            raise InvalidArgument(
                f"{len(step.block_table)} blocks do not cover {end} positions",
                field="steps.block_table",
            )
        if not 0 <= min(step.block_table) <= max(step.block_table) < kv_blocks:
            raise InvalidArgument(f"block ids must be below {kv_blocks}", field="steps.block_table")

    def _check_drafts(self, step: SequenceStep) -> None:
        if step.drafts and (not step.sample or len(step.drafts) >= step.count):
            raise InvalidArgument(
                f"{len(step.drafts)} drafts in {step.count} rows: a row that is none must come "
                "before them, and they must be asked for tokens",
                field="steps.drafts",
            )
        _check_ids(step.drafts, self._facts.vocab_size, "steps.drafts")

    def _check_hidden(self, hidden: Hidden) -> None:
        facts = self._facts
        if facts.first:
            raise InvalidArgument("the first stage takes token ids", field="hidden")
        if hidden.dtype != facts.hidden_dtype:
            raise InvalidArgument(f"must be {facts.hidden_dtype}", field="hidden.dtype")
        expected = hidden.rows * facts.row_width * ELEMENT_BYTES[hidden.dtype]
        if len(hidden.data) != expected:
            raise InvalidArgument(
                f"{len(hidden.data)} bytes, expected {expected}", field="hidden.data"
            )

    def _check_first(self, token_ids: Sequence[int]) -> None:
        if not self._facts.first:
            raise InvalidArgument("only the first stage takes token ids", field="rows")
        _check_ids(token_ids, self._facts.vocab_size, "token_ids")


class _Nowhere:
    """Implements Follows where no grammar can be compiled: nothing may follow."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def take(self, ids: Sequence[int]) -> None:
        """Stays where it is."""

    def allowed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        raise Stuck(self._reason)


def _check_drafted(batch: Batch, token_ids: Sequence[int]) -> None:
    end = 0
    for step in batch.steps:
        end += step.count
        if step.drafts and list(token_ids[end - len(step.drafts) : end]) != list(step.drafts):
            raise InvalidArgument(
                f"the last rows of slot {step.slot} are not its drafts", field="steps.drafts"
            )


def _check_ids(ids: Collection[int], limit: int, field: str) -> None:
    if ids and not 0 <= min(ids) <= max(ids) < limit:
        raise InvalidArgument(f"{field} must be token ids below {limit}", field=field)
