"""Guesses at what a sequence says next: what followed where its last ids stood before.

Speculative decoding (Leviathan et al., ICML'23) whose draft model is the text itself: an index of
the sequence's own pairs and triples of ids. An id is guessed from the latest place where the last
three stood, else the last two, and behind a guess that was right from the place behind its source,
so that a run goes on where it was.

Every id that comes tells whether it would have been guessed, whether or not anything was drafted:
so what guesses are worth is known without trying any.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from services.common.generation import GenerationRequest, finish_at

_ID_BITS = 32
FORGETTING = 0.95
"""What is left of one outcome's weight when the next one comes."""
TRUST = 4.0
"""Weight of what is taken for granted, in outcomes."""


class Basis(Enum):
    """What a guess stands on."""

    PAIR = auto()
    TRIPLE = auto()
    RUN = auto()
    """The guess before it was right."""


GRANTED = {Basis.PAIR: 0.3, Basis.TRIPLE: 0.5, Basis.RUN: 0.7}
"""How often a guess is right, before anything is known of its sequence."""


class Chance:
    """How often guesses on one basis were right, of late."""

    def __init__(self, granted: float) -> None:
        self._granted = granted
        self._right = self._all = 0.0

    @property
    def value(self) -> float:
        return (self._right + TRUST * self._granted) / (self._all + TRUST)

    def count(self, right: bool) -> None:
        """One more guess, and whether it was right."""
        self._right = FORGETTING * self._right + right
        self._all = FORGETTING * self._all + 1


class Lookup:
    """The guesses of one sequence; an id costs the same however many came before it."""

    def __init__(self, request: GenerationRequest, ids: Sequence[int]) -> None:
        """`ids` are the sequence's own, prompt and output, and grow."""
        self._request = request
        self._ids = ids
        self._prompt_length = len(request.prompt_ids)
        self._answer = request.prompt_tokens
        """Position of the first id that the model chooses."""
        self._length = 0
        self._last = self._pair = -1
        self._pairs: dict[int, int] = {}
        """The position behind each pair, where it stood last."""
        self._triples: dict[int, int] = {}
        self._source = 0
        """Where the next id is guessed from; 0: it is not."""
        self._basis = Basis.PAIR
        self._chances = {basis: Chance(granted) for basis, granted in GRANTED.items()}

    def read(self, end: int) -> None:
        """Takes the ids up to position `end` into account."""
        ids, pairs, triples = self._ids, self._pairs, self._triples
        for position in range(self._length, end):
            token, source = ids[position], self._source
            right = source > 0 and ids[source] == token
            if source and position >= self._answer:
                self._chances[self._basis].count(right)
            triple, pair = self._pair << _ID_BITS | token, self._last << _ID_BITS | token
            if right:
                self._source, self._basis = source + 1, Basis.RUN
            elif found := triples.get(triple):
                self._source, self._basis = found, Basis.TRIPLE
            else:
                self._source, self._basis = pairs.get(pair, 0), Basis.PAIR
            triples[triple] = pairs[pair] = position + 1
            self._last, self._pair = token, pair
        self._length = max(self._length, end)

    def guess(self, most: int) -> list[int]:
        """The ids behind all there are, `most` at most; where what is known ends they go on with
        what was guessed, as a text does that repeats itself. None that would end the sequence: the
        row before it says so itself."""
        self.read(len(self._ids))
        guessed: list[int] = []
        if not self._source or not most:
            return guessed
        known = self._ids[self._source : self._source + most]
        output = len(self._ids) - self._prompt_length
        for position in range(output, output + most):
            token = known[(position - output) % len(known)]
            if finish_at(self._request, position, token) is not None:
                break
            guessed.append(token)
        return guessed

    def chances(self, count: int) -> list[float]:
        """Of each of `count` guesses: how likely that it and all before it are right."""
        first, further = self._chances[self._basis].value, self._chances[Basis.RUN].value
        return [first * further**index for index in range(count)]
