"""What a head refuses before it runs anything: requests that this model or cache cannot serve."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from services.common.channel_options import MAX_MESSAGE_BYTES
from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.exchange import GenerateCall
from services.common.generation import SAMPLING, ModelRef
from services.common.message_sizes import check_generation_fits


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a formation can serve."""

    model: ModelRef
    vocab_size: int
    max_positions: int
    """Most positions of one sequence, prompt and output."""
    max_message_bytes: int = MAX_MESSAGE_BYTES
    grammar_library: str = ""
    """What grammars are compiled with; empty: none are."""

    def check(self, call: GenerateCall) -> None:
        """Raises InvalidArgument with the field and the limit, FailedPrecondition for another
        model."""
        request, sampling = call.request, call.request.sampling
        if request.model.digest != self.model.digest:
            raise FailedPrecondition("this pipeline serves another model", field="model")
        positions = len(request.prompt_ids) + sampling.max_tokens
        if positions > self.max_positions:
            raise InvalidArgument(
                f"prompt and max_tokens are {positions} positions, the limit is "
                f"{self.max_positions}",
                field="max_tokens",
            )
        if sampling.grammar is not None and sampling.grammar.library != self.grammar_library:
            raise FailedPrecondition(
                f"grammars are compiled by {self.grammar_library or 'nobody'} here, not by "
                f"{sampling.grammar.library}",
                field="grammar",
            )
        check_generation_fits(request, self.max_message_bytes)
        self._check_ids(request.prompt_ids, "prompt_ids")
        for name, row in SAMPLING.items():
            row.check_ids(getattr(sampling, name), self.vocab_size)
        for span in call.held:
            if span.end > sampling.max_tokens:
                raise InvalidArgument("more ids than max_tokens are held", field="held")
            self._check_ids(span.ids, "held")

    def _check_ids(self, ids: Collection[int], field: str) -> None:
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise InvalidArgument(f"token ids must be below {self.vocab_size}", field=field)
