from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.common.errors import InvalidArgument, Unavailable
from services.model import grammar
from services.router.grammar_checks import MAX_HELD, MAX_PROCESSES, GrammarChecks, ModelChecks
from services.router.grammar_process import Limits
from tests.unit.model.test_grammar import END, SIZE, TOKENIZER
from tests.unit.model.test_grammar_costs import LITERAL

GOOD = grammar.of_regex("[a-z]{3}")
LONG = grammar.of_regex(LITERAL)


@pytest.fixture
def checks() -> Iterator[GrammarChecks]:
    checks = GrammarChecks()
    yield checks
    checks.close()


def _model(checks: GrammarChecks) -> ModelChecks:
    return checks.of(TOKENIZER.to_str(), SIZE, (END,))


def test_grammars_are_taken_and_refused_as_the_compiler_does(checks: GrammarChecks) -> None:
    model = _model(checks)
    assert checks.pids == []
    model.check(GOOD)
    model.check(LONG)
    with pytest.raises(InvalidArgument) as refused:
        model.check(grammar.of_json_schema({"type": "wrong"}))
    in_process = grammar.Grammars(TOKENIZER.to_str(), SIZE, (END,))
    with pytest.raises(InvalidArgument) as wanted:
        in_process.check(grammar.of_json_schema({"type": "wrong"}))
    assert refused.value.message == wanted.value.message
    assert [model.is_apart(i) for i in range(SIZE)] == [in_process.is_apart(i) for i in range(SIZE)]
    assert len(checks.pids) == 1
    with pytest.raises(InvalidArgument, match="the tokenizer cannot be read"):
        checks.of("{}", SIZE, (END,)).check(GOOD)


@pytest.mark.group(22)
@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(room_bytes=1 << 20), "more than 1 MiB"),
        (Limits(core_s=0.01), "more than 0.01 s"),
    ],
)
def test_what_asks_for_too_much_is_refused_and_the_next_one_is_not(
    limits: Limits, words: str
) -> None:
    checks = GrammarChecks(limits=limits)
    try:
        model = _model(checks)
        model.is_apart(END)
        first = checks.pids
        with pytest.raises(InvalidArgument, match=words):
            model.check(LONG)
        assert checks.pids == []
        assert model.is_apart(END)
        model.is_apart(END + 1)
        assert len(checks.pids) == 1
        assert checks.pids != first
    finally:
        checks.close()


def test_a_process_that_dies_is_replaced(checks: GrammarChecks) -> None:
    model = _model(checks)
    model.check(GOOD)
    (pid,) = checks.pids
    os.kill(pid, signal.SIGKILL)
    model.check(GOOD)
    assert checks.pids != [pid]


def test_a_drain_does_not_end_it_and_the_end_of_its_router_does(checks: GrammarChecks) -> None:
    model = _model(checks)
    model.check(GOOD)
    (pid,) = checks.pids
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, number)
    model.check(GOOD)
    assert checks.pids == [pid]
    with checks.process() as process:
        process.line.close()  # as the kernel does for a router that is killed
        assert process.process.wait(60) == 0


def test_there_are_never_more_than_a_few(checks: GrammarChecks) -> None:
    model = _model(checks)
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(model.check, LONG) for _ in range(4)]:
            done.result()
    assert len(checks.pids) <= MAX_PROCESSES


def test_one_that_holds_many_models_is_begun_anew() -> None:
    checks = GrammarChecks(processes=1)
    try:
        seen = set()
        for _ in range(MAX_HELD + 1):
            _model(checks).check(GOOD)
            seen.update(checks.pids)
        assert len(seen) == 1
        assert checks.pids == []
    finally:
        checks.close()


def test_who_waits_when_it_closes_is_told() -> None:
    checks = GrammarChecks(processes=1)
    model, told = _model(checks), []

    def ask() -> None:
        try:
            while True:
                model.check(LONG)
        except Unavailable as error:
            told.append(error.message)

    model.check(GOOD)
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    checks.close()
    for thread in threads:
        thread.join(60)
    assert told == ["this router stops; ask another one"] * 3
    assert checks.pids == []
