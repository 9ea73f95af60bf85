from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest
from shuntserve.controller.v1 import controller_pb2

from bench import kinds, kinds_asked
from bench.kinds_answers import Answer
from bench.kinds_load import BEGUN, Grants, Kills, Load

KINDS = {name: kinds_asked.plain(1)[name] for name in ("structured", "echo")}


def load() -> Load:
    nobody: Any = None
    return Load(nobody, nobody, "tiny", KINDS)


def begun(asked: Load, reader: int, name: str) -> Answer:
    """An answer that is under way."""
    _, answer = asked.begin(reader)
    answer.generation_ids.add(name)
    answer.events = BEGUN
    return answer


def line(name: str, epoch: int = 1, pipeline: str = "p0") -> dict[str, Any]:
    return {"id": name, "epoch": epoch, "pipeline": pipeline}


def granted(name: str, epoch: int) -> controller_pb2.WatchEventsResponse:
    attributes = {"epoch": str(epoch)}
    return controller_pb2.WatchEventsResponse(
        kind="generation_granted", generation_id=name, attributes=attributes
    )


def test_every_kind_is_asked_for_and_the_least_struck_the_most() -> None:
    asked = load()
    asked.struck["structured"] = 5
    kinds_begun = [asked.begin(reader)[0] for reader in range(8)]
    assert kinds_begun[0::2] == ["echo"] * 4, "while it was struck less"
    assert kinds_begun[1::2] == ["structured"] * 4, "while it was asked for less"


def test_only_what_has_begun_and_not_ended_is_struck() -> None:
    asked = load()
    under_way, ended, new = (begun(asked, n, f"g{n}") for n in range(3))
    ended.done, new.events = True, BEGUN - 1
    carried = asked.carried([line("g0", 3, "p1"), line("g1"), line("g2"), line("g9")])
    ((pipeline, (one,)),) = carried.items()
    assert (pipeline, one.answer, one.generation_id, one.epoch) == ("p1", under_way, "g0", 3)


@pytest.mark.parametrize("moves", [True, False])
async def test_a_kill_counts_where_something_of_it_goes_on_elsewhere(moves: bool) -> None:
    asked, grants = load(), Grants()
    first, second = begun(asked, 0, "g0"), begun(asked, 1, "g1")
    engine = await asyncio.create_subprocess_exec("sleep", "600")
    status = {
        "generations": [line("g0", 2), line("g1")],
        "nodes": [{"id": "n0", "pid": engine.pid}],
        "pipelines": [{"id": "p0", "state": "ready", "stages": [{"node": "n0"}]}],
    }

    async def told() -> Any:
        return status

    mesh: Any = SimpleNamespace(status=told)
    kills = Kills(mesh, asked, grants, random.Random(1))
    grants.take(granted("g0", 2))  # of an earlier kill
    killing = asyncio.create_task(kills.kill())
    assert await engine.wait() == -9
    first.done = True
    if moves:
        grants.take(granted("g1", 2))
    else:
        second.done = True
    await killing
    report = kills.report()
    assert (report["kills"], report["kills_that_struck_nothing"]) == (int(moves), int(not moves))
    assert (report["struck"], report["moved"]) == (2, int(moves))
    assert sum(report["moved_by_kind"].values()) == int(moves)


def test_an_answer_is_judged_by_what_came_undisturbed() -> None:
    names = '{"names": [' + ", ".join(['"owl"'] * 12) + "]}"

    def answer(text: str, **more: Any) -> Answer:
        made = Answer(**more)
        made.take({"choices": [{"index": 0, "delta": {"content": text}}]})
        return made

    expected = {"structured": answer(names, done=True)}
    answers = [
        ("structured", answer(names, done=True)),
        ("structured", answer(names, done=False)),
        ("structured", answer(names.replace("owl", "fox"), done=True)),
        ("structured", answer(names[1:], done=True)),
    ]
    found = kinds.judged(answers, expected, KINDS)
    assert found["requests"] == 4
    assert [len(found[name]) for name in kinds.WRONG] == [1, 2, 1]
    assert found["failure_rate_bound_95"] > 0


async def test_a_run_that_hears_of_no_grants_any_more_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else no kill would count, and it would never end."""

    async def asked(_client: Any, _url: Any, _model: Any, _kind: Any, answer: Answer) -> None:
        answer.done = True

    async def ends(_grants: Grants, _stub: Any) -> None:
        raise ConnectionError("the log is away")

    async def status() -> Any:
        return {"services": [{"name": "controller", "grpc": "127.0.0.1:1"}]}

    async def until_ready(_pipelines: int) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(kinds, "ask", asked)
    monkeypatch.setattr(Grants, "follow", ends)
    mesh: Any = SimpleNamespace(url=lambda: "", status=status, until_ready=until_ready)
    anything = {"any": kinds_asked.Kind("chat/completions", {}, lambda _: True)}
    with pytest.raises(ConnectionError, match="the log is away"):
        await kinds.run(mesh, anything, kills=1, seed=1, readers=0)
