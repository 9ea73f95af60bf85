from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc

from services.cli import events
from services.cli.event_lines import json_line, text_line
from services.cli.events import COMPARED, Reading, read_events
from services.cli.mesh_directory import MeshError
from tests.unit.cli.controller_rig import played
from tests.waiting import until

WAIT_S = 60.0


def event(number: int, kind: str = "node_lost") -> pb.WatchEventsResponse:
    return pb.WatchEventsResponse(number=number, time_unix_s=float(number), kind=kind, plan=2)


class Log(controller_pb2_grpc.ControllerServiceServicer):
    """A controller that tells one list of events a call, and fails between them."""

    def __init__(self, *calls: Sequence[pb.WatchEventsResponse]) -> None:
        self.calls = list(calls)
        self.asked: list[int] = []

    async def WatchEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.asked.append(request.from_number)
        told = self.calls.pop(0)
        for one in told:
            if one.number >= request.from_number:
                yield one
        if request.no_wait:
            return
        if self.calls:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "restarts")
        await asyncio.sleep(WAIT_S)


async def followed(path: Path, log: Log, count: int, since: int = 0) -> tuple[list[int], list[str]]:
    """The numbers of the first events of a reader that follows, and its complaints."""
    complaints: list[str] = []
    numbers: list[int] = []
    async with played(path, log) as directory, asyncio.timeout(WAIT_S):
        found = read_events(directory, since, True, complaints.append)
        async for one in found:
            numbers.append(one.number)
            if len(numbers) == count:
                break
        await found.aclose()
    return numbers, complaints


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PAUSE_S", 0.01)


def test_a_line_has_exactly_what_scripts_rely_on() -> None:
    one = pb.WatchEventsResponse(
        number=7,
        time_unix_s=1764200000.1234,
        kind="stage_loaded",
        node_id="node-1",
        plan=3,
        attributes={"layers": "0-3"},
    )
    assert json.loads(json_line(one)) == {
        "n": 7,
        "at": 1764200000.123,
        "kind": "stage_loaded",
        "node": "node-1",
        "pipeline": None,
        "generation": None,
        "plan": 3,
        "attributes": {"layers": "0-3"},
    }
    text = text_line(one).plain
    assert text.index("plan 3") < text.index("stage_loaded") < text.index("node-1 layers=0-3")
    assert "no plan" in text_line(pb.WatchEventsResponse()).plain


async def test_the_log_as_it_is_ends_behind_the_newest(tmp_path: Path) -> None:
    log, complaints = Log([event(4), event(5)]), list[str]()
    async with played(tmp_path, log) as directory:
        found = read_events(directory, 0, False, complaints.append)
        assert [one.number async for one in found] == [4, 5]
    assert complaints == [], "nobody asked for what is gone"


async def test_a_reader_goes_on_behind_its_last_event_when_the_controller_restarts(
    tmp_path: Path,
) -> None:
    first = [event(1), event(2), event(3)]
    log = Log(first, [], [*first, event(4)], [*first, event(4), event(5)])
    numbers, complaints = await followed(tmp_path, log, 5)
    assert numbers == [1, 2, 3, 4, 5]
    assert complaints == ["the controller does not answer; waiting for it"] * 2, "once an outage"
    assert len(log.asked) == 4


async def test_a_reader_waits_while_the_mesh_has_no_controller_at_all(tmp_path: Path) -> None:
    log = Log([event(1)], [event(1), event(2)])
    complaints: list[str] = []
    async with played(tmp_path, log) as directory, asyncio.timeout(WAIT_S):
        state = directory.read()
        assert state is not None
        gone = tuple(replace(one, pid=0, grpc=None) for one in state.services)
        directory.write(replace(state, services=gone))
        with pytest.raises(MeshError, match="being started again"):
            async for _ in read_events(directory, 0, False, pytest.fail):
                pass
        found = read_events(directory, 0, True, complaints.append)
        first = asyncio.ensure_future(anext(found))
        await until(lambda: complaints == ["the controller does not answer; waiting for it"])
        directory.write(state)
        assert (await first).number == 1
        assert (await anext(found)).number == 2
        await found.aclose()
    assert len(complaints) == 2, "once an outage"


async def test_events_that_are_no_longer_kept_are_told_and_nothing_else_is_missing(
    tmp_path: Path,
) -> None:
    log = Log([event(1), event(2)], [event(6), event(7)])
    numbers, complaints = await followed(tmp_path, log, 4)
    assert numbers == [1, 2, 6, 7]
    assert complaints[-1] == "events 3 to 5 are no longer kept"


async def test_who_asks_for_events_that_are_gone_is_told(tmp_path: Path) -> None:
    numbers, complaints = await followed(tmp_path, Log([event(6)]), 1, since=2)
    assert (numbers, complaints) == ([6], ["events 2 to 5 are no longer kept"])


async def test_events_that_a_controller_took_with_it_are_replaced_by_others(
    tmp_path: Path,
) -> None:
    log = Log(
        [event(1), event(2), event(3)],
        [event(1), event(2, "node_returned"), event(3, "plan_ready"), event(4)],
    )
    numbers, complaints = await followed(tmp_path, log, 6)
    assert numbers == [1, 2, 3, 2, 3, 4]
    assert complaints[-1] == "the newest events were lost with a controller: 2 is another"


def test_what_is_remembered_of_a_long_log_has_a_bound() -> None:
    reading = Reading(0, pytest.fail)
    for number in range(1, 10 * COMPARED):
        assert reading.is_new(event(number))
    assert reading.from_number == 9 * COMPARED
    assert not any(reading.is_new(event(n)) for n in range(9 * COMPARED, 10 * COMPARED))


async def test_an_error_that_time_does_not_mend_ends_the_reading(tmp_path: Path) -> None:
    class Refuses(controller_pb2_grpc.ControllerServiceServicer):
        async def WatchEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "operators only")
            yield

    async with played(tmp_path, Refuses()) as directory:
        with pytest.raises(MeshError, match="operators only"):
            async for _ in read_events(directory, 0, True, pytest.fail):
                pass


async def _shunt_events(path: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "events", "--data-dir", str(path), *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def test_ctrl_c_ends_a_reader_that_follows_without_a_word(tmp_path: Path) -> None:
    async with played(tmp_path, Log([event(1)])), asyncio.timeout(WAIT_S):
        reader = await _shunt_events(tmp_path, "--follow", "--json")
        assert reader.stdout is not None
        assert reader.stderr is not None
        line = await reader.stdout.readline()
        assert line, f"it ended: {(await reader.stderr.read()).decode()}"
        assert json.loads(line)["n"] == 1
        for _ in range(3):
            reader.send_signal(signal.SIGINT)
        rest = await reader.communicate()
    assert (reader.returncode, rest) == (0, (b"", b""))


@pytest.mark.parametrize("arguments", [("--follow", "--json"), ("--follow",), ("--json",)])
async def test_a_pipe_that_closes_ends_a_reader_without_a_word(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    many = [event(number) for number in range(1, 3000)]
    async with played(tmp_path, Log(many)), asyncio.timeout(WAIT_S):
        reader = await asyncio.create_subprocess_shell(
            f"({sys.executable} -m services.cli events --data-dir {tmp_path}"
            f" {' '.join(arguments)}; echo $? >&2) | head -1 | wc -l",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert await reader.communicate() == (b"1\n", b"0\n")


async def test_a_quiet_log_does_not_keep_a_reader_whose_pipe_is_closed(tmp_path: Path) -> None:
    async with played(tmp_path, Log([event(1)])), asyncio.timeout(WAIT_S):
        reader = await asyncio.create_subprocess_shell(
            f"{sys.executable} -m services.cli events --data-dir {tmp_path} --follow | head -1",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        told, complaints = await reader.communicate()
    assert told.count(b"node_lost") == 1
    assert complaints == b""


async def test_only_the_kinds_that_are_asked_for_are_shown(tmp_path: Path) -> None:
    log = Log([event(1), event(2, "plan_ready"), event(3, "node_returned"), event(4)])
    arguments = ("--kind", "plan_ready", "--kind", "node_returned", "--since", "2")
    async with played(tmp_path, log), asyncio.timeout(WAIT_S):
        reader = await _shunt_events(tmp_path, *arguments)
        told, _ = await reader.communicate()
    kinds = [line.split()[4] for line in told.decode().splitlines()]
    assert kinds == ["plan_ready", "node_returned"]
    assert log.asked == [2]


async def test_a_kind_of_which_there_is_nothing_is_told(tmp_path: Path) -> None:
    log = Log([event(1), event(2, "plan_ready")])
    async with played(tmp_path, log), asyncio.timeout(WAIT_S):
        reader = await _shunt_events(tmp_path, "--kind", "plan_ready", "--kind", "plan_raedy")
        told, complaints = await reader.communicate()
    assert len(told.splitlines()) == 1
    assert complaints.decode() == "shunt: there is no event of the kind plan_raedy\n"
