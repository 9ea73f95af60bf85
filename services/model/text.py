"""The side of a model that is text: its tokenizer, its chat template, and what ends a sequence.

Read from the small files beside the weights, the way transformers reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from services.common.errors import InvalidArgument
from services.model.small_files import CONFIG, GENERATION_FILE, SMALL_FILES, SmallFiles, check_size
from services.model.tokenizer import TOKENIZER_FILE, Tokenizer
from services.model.tokenizer_class import class_of
from services.model.tokenizer_settings import CLEAN_UP, CLEAN_UP_BPE, CONFIG_FILE, refuse

if TYPE_CHECKING:
    from services.model.grammar import Grammars

FILES = (TOKENIZER_FILE, *SMALL_FILES)
"""The files that are read here."""


class ModelText:
    """Raises InvalidArgument, naming file and field, for files that cannot be used."""

    def __init__(
        self, config: Mapping[str, Any], vocabulary_size: int, files: Mapping[str, bytes]
    ) -> None:
        """`config` is config.json; the model can embed as many ids as its vocabulary's size."""
        if TOKENIZER_FILE not in files:
            raise InvalidArgument(_no_tokenizer(files), field=TOKENIZER_FILE)
        check_size(files, TOKENIZER_FILE)
        small, tokenizer_json = SmallFiles(config, files), files[TOKENIZER_FILE]
        self.defaults: Mapping[str, float] = small.defaults
        """The sampling values that the model comes with."""
        tokenizer_class = class_of(config, small.settings, tokenizer_json)
        special_tokens = small.special_tokens(tokenizer_class)
        self.template = small.template(special_tokens)
        """None where the model has none."""
        self.template_file = small.template_file
        self.tokenizer = Tokenizer(tokenizer_json, special_tokens, tokenizer_class, small.settings)
        if self.tokenizer.special_tokens is not special_tokens:
            special_tokens = self.tokenizer.special_tokens
            self.template = small.template(special_tokens)
        cleaned = CLEAN_UP_BPE if self.tokenizer.is_bpe else CLEAN_UP
        if small.settings.get(cleaned):
            raise refuse(cleaned, "a text that is shown as it comes is not cleaned up")
        self.declares_added = special_tokens.declared is not None
        """Whether tokenizer_config.json says which tokens are added."""
        self.vocabulary_size = vocabulary_size
        self.special_token_ids = {
            text: token_id
            for text, token_id in self.tokenizer.special_ids.items()
            if token_id < self.vocabulary_size
        }
        """By text, of those that the model can produce."""
        end = special_tokens.named.get("eos_token")
        self.eos_token_ids = self._ends(small.end_ids, end.content if end else None)

    def grammars(self) -> Grammars:
        """What compiles grammars over its tokens; takes some tenths of a second. Raises
        InvalidArgument for a tokenizer that cannot be used so."""
        from services.model.grammar import Grammars  # a store that checks a model has no llguidance

        return Grammars(self.tokenizer.as_json, self.vocabulary_size, self.eos_token_ids)

    def _ends(self, named: Sequence[int], token: str | None) -> tuple[int, ...]:
        """Every id that any of the files names; one that the model cannot produce ends nothing."""
        if token == "":
            raise refuse("eos_token", "must not be empty")
        spelt = self.tokenizer.id_of(token) if token is not None else None
        ids = [*named, *([] if spelt is None else [spelt])]
        ends = tuple(i for i in dict.fromkeys(ids) if 0 <= i < self.vocabulary_size)
        if not ends:
            raise InvalidArgument(
                f"no file names an end of sequence: eos_token_id in {GENERATION_FILE} or {CONFIG}, "
                f"or eos_token in {CONFIG_FILE}",
                field="eos_token_id",
            )
        return ends


def _no_tokenizer(files: Mapping[str, bytes]) -> str:
    others = [name for name in ("tokenizer.model", "vocab.json", "merges.txt") if name in files]
    if not others:
        return f"{TOKENIZER_FILE} is missing"
    return (
        f"{TOKENIZER_FILE} is missing, and {' and '.join(others)} cannot take its place; make it "
        "with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    )
