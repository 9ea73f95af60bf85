"""What a text must follow, over a model's tokens: which ids may come next is a function of grammar
and ids alone, so a generation that moves carries neither state nor chance.

llguidance compiles grammars and keeps the place in them. It is imported by who needs it: most
requests ask for none. Ids that it would force are drawn like all others: to skip the draw would
make the ids depend on where a generation was cut.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgument, ShuntError

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
    from llguidance._lib import JsonCompileOptions

_log = logging.getLogger(__name__)
LIBRARY = f"llguidance-{version('llguidance')}"
"""As grammars name it."""
_WORD_BITS = 32
MAX_PROPERTIES = 400
"""Of one object: with some more nothing can be followed, which takes seconds to find."""
MAX_ITEMS = 10_000
"""Entries that arrays of a schema may ask for or allow, all together: each is compiled apart."""
LEXER_FUEL = 400_000
"""What expressions may cost to compile, of llguidance's 1,000,000: more is over 64 MiB."""
WARM_AFTER_S = 5.0
"""Half a second of a core, which a pipeline that is about to serve again has not to spare."""
_VALUES = frozenset(("const", "enum", "default", "examples"))
"""Keywords that hold values, not schemas."""
WALKED = 8
"""Ids behind which a grammar is tried when it is checked."""
MOST_THREADS = 8
"""Of those that look ahead; no more than half the cores, for a step computes on them meanwhile."""
_Bits = NDArray[np.uint8]
"""Of what may follow: a bit an id, the lowest one first, in whole words."""


class Stuck(ShuntError):
    """Nothing may follow, or to find what may is more than is allowed."""


def of_json_schema(schema: Any, field: str = "grammar", *, lenient: bool = False) -> str:
    """Documents that a schema describes, without blanks between their parts, properties in its
    order. What it cannot follow is refused when it is checked, or overlooked where `lenient`.

    Raises InvalidArgument, naming the field it came in, for one that is no schema or too broad.
    """
    from llguidance import LLMatcher

    check_breadth(schema, field)
    options: JsonCompileOptions = {"whitespace_flexible": False, "lenient": lenient}
    try:
        return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options))
    except ValueError as error:
        raise InvalidArgument(f"{field}: {_first_line(str(error))}", field=field) from None


def json_rule(schema: Mapping[str, Any], *, lenient: bool) -> str:
    """The same as a part of a grammar in Lark's notation, with the blanks that models are used to
    write in calls."""
    separators = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
    return "%json " + json.dumps({**schema, "x-guidance": {**separators, "lenient": lenient}})


def check_breadth(schema: Any, field: str) -> None:
    """Raises InvalidArgument, naming the field it came in, for a schema that is too broad."""
    waiting, items = [schema], 0
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        if not isinstance(part, dict):
            continue
        properties = part.get("properties")
        if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
            raise InvalidArgument(
                f"{field}: an object has {len(properties)} properties, at most {MAX_PROPERTIES}",
                field=field,
            )
        for name in ("minItems", "maxItems"):
            counted = part.get(name)
            items += counted if type(counted) is int else 0
            if items > MAX_ITEMS:
                raise InvalidArgument(
                    f"{field}: {name}: arrays may have {MAX_ITEMS} entries at most, all together",
                    field=field,
                )
        waiting += (value for key, value in part.items() if key not in _VALUES)


def schema_from(text: str, field: str) -> Any:
    """A schema out of its text. Raises InvalidArgument for what is no JSON object."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise InvalidArgument(f"{field} must be a JSON object", field=field)
    return schema


def of_regex(pattern: str) -> str:
    """Texts that an expression matches as a whole."""
    from llguidance import LLMatcher

    return str(LLMatcher.grammar_from_regex(pattern))


def of_choice(texts: Sequence[str]) -> str:
    """One of some texts."""
    return of_lark("start: " + " | ".join(json.dumps(text) for text in texts))


def of_lark(text: str) -> str:
    """A grammar in Lark's notation, as llguidance reads it, begun at `start`."""
    return json.dumps({"grammars": [{"lark_grammar": text}]})


class Grammars:
    """Compiles grammars for one model."""

    def __init__(self, tokenizer_json: str, vocabulary_size: int, end_ids: Sequence[int]) -> None:
        """Takes some tenths of a second. Raises InvalidArgument for a tokenizer that llguidance
        cannot read."""
        from llguidance import LLTokenizer

        try:
            self._tokenizer: LLTokenizer = LLTokenizer(
                tokenizer_json, n_vocab=vocabulary_size, eos_token=end_ids[0]
            )
        except ValueError as error:
            reason = f"grammars: the tokenizer cannot be read: {_first_line(str(error))}"
            raise InvalidArgument(reason, field="grammar") from None
        self._form = _Form(vocabulary_size, tuple(end_ids))

    def is_apart(self, token_id: int) -> bool:
        """A token that no text spells: a grammar has to name it by its id."""
        return 0 <= token_id < self._form.size and self._tokenizer.is_special_token(token_id)

    def check(self, grammar: str) -> None:
        """Raises InvalidArgument for one that cannot be compiled or is soon too much to follow, and
        says why."""
        try:
            self._walk(self.begin(grammar))
        except Stuck as stuck:
            raise InvalidArgument(stuck.message, field="grammar") from None

    def _walk(self, guide: Guide) -> None:
        """What is too much often shows within a few ids. Raises Stuck."""
        flat = np.zeros(self._form.size, np.float32)
        for _ in range(WALKED):
            may = np.flatnonzero(np.isfinite(guide.allowed(flat)))
            others = may[~np.isin(may, self._form.ends)]
            if not len(others):
                return
            guide.take([int(others[-1])])

    def begin(self, grammar: str) -> Guide:
        """At its beginning. One that cannot be compiled is stuck there."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_limits())
        return Guide(matcher, self._form)

    def look_ahead(self, guides: Sequence[Guide]) -> None:
        """Has found in a thread what may follow where each of them is. It needs nothing but the ids
        so far, so a step that computes the next logits need not wait for it."""
        waiting = [guide for guide in guides if guide.is_open]
        if not waiting:
            return
        words: NDArray[np.int32] = np.zeros((len(waiting), self._form.mask_bytes // 4), np.int32)
        matchers = [(guide.matcher, row) for row, guide in enumerate(waiting)]
        filled = self._thread.submit(self._fill, matchers, words)
        for guide, row in zip(waiting, words.view(np.uint8), strict=True):
            guide.expect(row, filled)

    def _fill(self, matchers: list[tuple[LLMatcher, int]], words: NDArray[np.int32]) -> None:
        from llguidance.numpy import fill_next_token_bitmask_par

        fill_next_token_bitmask_par(self._executor, matchers, words)

    @cached_property
    def _executor(self) -> LLExecutor:
        from llguidance import LLExecutor

        cores = len(os.sched_getaffinity(0))
        return LLExecutor(num_threads=max(1, min(cores // 2, MOST_THREADS)))

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "masks")


class _Form:
    """What the masks of one vocabulary have in common."""

    def __init__(self, size: int, ends: tuple[int, ...]) -> None:
        self.size, self.ends = size, ends
        self.mask_bytes = -(-size // _WORD_BITS) * _WORD_BITS // 8
        self.ids = self._bits_of(range(size))
        self._end_bits = self._bits_of(ends)
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        inf = np.float32(np.inf)
        self._most: NDArray[np.float32] = np.where(bits, inf, -inf)  # [256, 8], by a mask's byte

    def complete(self, bits: _Bits) -> _Bits:
        """With all ends where one may follow, and nothing that is no id."""
        end = self.ends[0]
        if bits[end // 8] >> end % 8 & 1:
            bits |= self._end_bits
        bits &= self.ids
        return bits

    def masked(self, logits: NDArray[np.float32], bits: _Bits) -> NDArray[np.float32]:
        """A copy in which what may not follow is -inf, whatever it was."""
        most = np.take(self._most, bits, axis=0, mode="clip").reshape(-1)[: self.size]
        return np.fmin(logits, most, out=most)

    def _bits_of(self, ids: Sequence[int]) -> _Bits:
        each = np.zeros(self.mask_bytes * 8, np.bool_)
        each[list(ids)] = True
        return np.packbits(each, bitorder="little")


class Guide:
    """A place in a grammar."""

    def __init__(self, matcher: LLMatcher, form: _Form) -> None:
        self.matcher = matcher
        self._form = form
        self._bits: _Bits | None = None
        self._filled: Future[None] | None = None

    @property
    def is_open(self) -> bool:
        """What may follow here is not known, nor sought."""
        return self._bits is None and not self.matcher.is_error()

    def expect(self, bits: _Bits, filled: Future[None]) -> None:
        """What may follow here will stand in `bits`; until then nothing touches the matcher."""
        self._bits, self._filled = bits, filled

    def take(self, ids: Sequence[int]) -> None:
        """Goes on behind ids; an end of sequence is the last one there is."""
        self._wait()
        for token_id in ids:
            if token_id in self._form.ends:
                return
            self._bits = None
            if not self.matcher.consume_token(token_id):
                return  # it is stuck from now on

    def allowed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy in which what may not follow is -inf. Raises Stuck where nothing may."""
        from llguidance.numpy import fill_next_token_bitmask

        self._wait()
        if self.is_open:
            words: NDArray[np.int32] = np.zeros((1, self._form.mask_bytes // 4), np.int32)
            fill_next_token_bitmask(self.matcher, words)
            self._bits = words.view(np.uint8)[0]
        if self._bits is None or self.matcher.is_error():
            raise Stuck(_first_line(self.matcher.get_error()))
        bits = self._form.complete(self._bits)
        if not bits.any():
            raise Stuck("nothing may follow")
        return self._form.masked(logits, bits)

    def _wait(self) -> None:
        if self._filled is not None:
            filled, self._filled = self._filled, None
            filled.result()


class LateGrammars:
    """Grammars of a model that are made when they are first asked for, or before, while nothing
    hurries."""

    def __init__(self, make: Callable[[], Grammars]) -> None:
        self._make = make
        self._made: Grammars | None = None
        self._lock = threading.Lock()

    def warm(self, after_s: float = WARM_AFTER_S) -> None:
        """Makes them in a thread, after a while; a failure shows when they are asked for."""
        timer = threading.Timer(after_s, self._try)
        timer.daemon = True
        timer.start()

    def begin(self, grammar: str) -> Guide:
        """As Grammars' own. Raises as it does."""
        return self._get().begin(grammar)

    def look_ahead(self, guides: Sequence[Guide]) -> None:
        """As Grammars' own."""
        if guides:
            self._get().look_ahead(guides)

    def _try(self) -> None:
        try:
            self._get()
        except Exception as error:  # who asks for one is told
            _log.warning("grammars cannot be made", extra={"reason": str(error)})

    def _get(self) -> Grammars:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made


def _limits() -> LLParserLimits:
    """Those of llguidance but for one: what a grammar may cost decides what is refused."""
    from llguidance import LLParserLimits

    return LLParserLimits(initial_lexer_fuel=LEXER_FUEL)


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else "it cannot be followed"
