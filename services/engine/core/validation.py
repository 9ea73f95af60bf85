"""What a head refuses before it runs anything: requests that this model or cache cannot serve."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from services.common.channel_options import MAX_MESSAGE_BYTES
from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.exchange import GenerateCall
from services.common.generation import ModelRef
from services.common.message_sizes import check_generation_fits

MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a formation can serve."""

    model: ModelRef
    vocab_size: int
    max_positions: int
    """Most positions of one sequence, prompt and output."""
    max_message_bytes: int = MAX_MESSAGE_BYTES

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
        if sampling.top_logprobs is not None and sampling.top_logprobs > MAX_TOP_LOGPROBS:
            raise InvalidArgument(f"at most {MAX_TOP_LOGPROBS}", field="top_logprobs")
        check_generation_fits(request, self.max_message_bytes)
        self._check_ids(request.prompt_ids, "prompt_ids")
        self._check_ids(sampling.logit_bias, "logit_bias")
        self._check_ids(sampling.stop_token_ids, "stop_token_ids")
        self._check_ids(sampling.eos_token_ids, "eos_token_ids")
        for span in call.held:
            if span.end > sampling.max_tokens:
                raise InvalidArgument("more ids than max_tokens are held", field="held")
            self._check_ids(span.ids, "held")

    def _check_ids(self, ids: Collection[int], field: str) -> None:
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise InvalidArgument(f"token ids must be below {self.vocab_size}", field=field)
