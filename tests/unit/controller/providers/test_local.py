from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from services.common import mesh_token
from services.common.errors import FailedPrecondition
from services.common.nodes import NodeFacts, NodeShape
from services.common.notices import NoticeKind
from services.controller.core.cluster.market import (
    Capabilities,
    LaunchFailed,
    NodeGone,
    NodeNotice,
    Offer,
    OffersChanged,
)
from services.controller.providers import processes
from services.controller.providers.local import RETRY_AFTER_S, LocalProvider
from services.controller.providers.provider import ExternalProvider

SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "open(sys.argv[1], 'w').close(); time.sleep(600)",
)
SHAPE = NodeShape(memory_bytes=1 << 30, relative_speed=3.0)
OFFER = Offer("spot-a", "laptop", SHAPE, count=6, price_per_hour=0.5, pool="a", spot=True)
Make = Callable[..., LocalProvider]


@asynccontextmanager
async def _provider(tmp_path: Path, command: tuple[str, ...] = SLEEPER) -> AsyncIterator[Make]:
    made: list[LocalProvider] = []

    def make(**more: object) -> LocalProvider:
        runs: tuple[str, ...] = more.pop("command", command)  # type: ignore[assignment]
        made.append(
            LocalProvider(
                offers=more.pop("offers", (OFFER,)),  # type: ignore[arg-type]
                environment=lambda offer: {"SPEED": str(offer.shape.relative_speed)},
                log_dir=tmp_path / "logs",
                command=lambda offer: runs,
                **more,  # type: ignore[arg-type]
            )
        )
        return made[-1]

    yield make
    for provider in made:
        for node_id in list(provider._processes):
            await provider.terminate(node_id, 0)
            await _next(provider)
        await provider.close()


async def _next(provider: LocalProvider) -> object:
    return await asyncio.wait_for(anext(provider.events()), 60)


async def _refused(provider: LocalProvider, reason: str, offer: Offer = OFFER) -> None:
    assert await provider.launch("n-1", offer) == ""
    assert not provider.holds("n-1")
    failed = await _next(provider)
    assert isinstance(failed, LaunchFailed)
    left_alone_s = RETRY_AFTER_S if failed.reason == "no capacity" else 0.0
    assert (failed.node_id, failed.retry_after_s) == ("n-1", left_alone_s)
    assert re.search(reason, failed.reason), failed.reason


def _pid(handle: str) -> int:
    return int(handle.partition(":")[0])


def _facts(node_id: str, pid: int) -> NodeFacts:
    return NodeFacts(node_id, "incarnation", "127.0.0.1:1", pid, SHAPE)


def _reap(handle: str) -> None:
    os.waitpid(_pid(handle), 0)


def _await_environment(handle: str) -> None:
    """A process that has just been started shows no environment for a moment."""
    while not Path(f"/proc/{_pid(handle)}/environ").read_bytes():
        os.sched_yield()


def _variables(handle: str) -> list[str]:
    _await_environment(handle)
    return Path(f"/proc/{_pid(handle)}/environ").read_text().split("\0")


def _await_tick(handle: str) -> None:
    """The next process will be younger by the kernel's clock, too."""
    started = int(handle.partition(":")[2])
    ticks = os.sysconf("SC_CLK_TCK")
    while int(time.clock_gettime(time.CLOCK_BOOTTIME) * ticks) <= started:
        os.sched_yield()


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def _forget_by_crash(provider: LocalProvider) -> None:
    """What is left of a controller that was killed: nothing watches, nothing was said."""
    await provider.close()


async def test_an_engine_is_given_its_nodes_token_and_not_the_meshs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, path = "a-token-of-24-characters", tmp_path / "token"
    path.write_text(token)
    monkeypatch.setenv(mesh_token.FILE_VARIABLE, str(path))
    async with _provider(tmp_path) as make:
        handle = await make().launch("n-1", OFFER)
        variables = _variables(handle)
    assert f"{mesh_token.VARIABLE}={mesh_token.of_node(token, 'n-1')}" in variables
    assert f"{mesh_token.FILE_VARIABLE}=" in variables
    assert not [variable for variable in variables if token in variable or str(path) in variable]


async def test_a_killed_node_is_known_at_once(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        provider = make()
        handle = await provider.launch("n-1", OFFER)
        os.kill(_pid(handle), signal.SIGKILL)
        assert await _next(provider) == NodeGone("n-1", "exit status -9")


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("sys.exit('no such GPU')", "exit status 1: no such GPU"),
        ("sys.exit(f'first\\n{\"x\" * 9000}\\n ')", f"exit status 1: {'x' * 200}"),
        ("raise ModuleNotFoundError('torch')", "exit status 1: ModuleNotFoundError: torch"),
        ('print(\'{"level":"INFO"}\'); sys.exit(3)', "exit status 3"),
        ("sys.exit(3)", "exit status 3"),
        ("print('bye')", "exit status 0"),
    ],
)
async def test_a_node_that_fails_is_gone_with_what_it_said_last(
    tmp_path: Path, does: str, reason: str
) -> None:
    async with _provider(tmp_path, (sys.executable, "-c", f"import sys; {does}")) as make:
        provider = make()
        await provider.launch("n-1", OFFER)
        assert await _next(provider) == NodeGone("n-1", reason)


async def test_a_node_runs_in_a_session_of_its_own(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        pid = _pid(await make().launch("n-1", OFFER))
        assert os.getsid(pid) == pid


async def test_the_engine_gets_its_id_and_its_environment(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        provider = make(
            command=(
                sys.executable,
                "-c",
                "import os; print(os.environ['SHUNT_ENGINE_NODE_ID'], os.environ['SPEED'])",
            )
        )
        await provider.launch("n-1", OFFER)
        await _next(provider)
        assert (tmp_path / "logs" / "n-1.log").read_text() == "n-1 3.0\n"


async def test_a_doubled_launch_starts_one_process(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        provider = make()
        assert await provider.launch("n-1", OFFER) == await provider.launch("n-1", OFFER)


async def test_a_restarted_provider_adopts_a_living_node(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        before = make()
        handle = await before.launch("n-1", OFFER)
        await _forget_by_crash(before)
        after = make()
        assert await after.adopt("n-1", handle)
        assert await after.adopt("n-1", handle)
        await after.terminate("n-1", 0)
        assert await _next(after) == NodeGone("n-1", "process ended")
        _reap(handle)


async def test_a_process_that_took_over_the_pid_is_not_adopted(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        handle = await make().launch("n-1", OFFER)
        assert not await make().adopt("n-2", f"{_pid(handle)}:1")
        assert not await make().adopt("n-2", "4194305:1")
        assert not await make().adopt("n-2", "nonsense")


async def test_a_node_whose_handle_was_never_journaled_is_recognised(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        before = make()
        handle = await before.launch("n-1", OFFER)
        _await_environment(handle)
        await _forget_by_crash(before)
        after = make()
        assert await after.recognise(_facts("n-2", _pid(handle))) == ""
        assert await after.recognise(_facts("n-1", 4194305)) == ""
        assert await after.recognise(_facts("n-1", _pid(handle))) == handle
        await after.terminate("n-1", 0)
        await _next(after)
        _reap(handle)


async def test_a_node_that_heeds_its_grace_is_not_killed(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        provider = make()
        await provider.launch("n-1", OFFER)
        await provider.terminate("n-1", 20)
        assert await _next(provider) == NodeGone("n-1", f"exit status -{int(signal.SIGTERM)}")


async def test_a_node_that_outlives_its_grace_is_killed(tmp_path: Path) -> None:
    deaf = tmp_path / "deaf"
    os.mkfifo(deaf)
    async with _provider(tmp_path, (*STUBBORN, str(deaf))) as make:
        provider = make()
        await provider.launch("n-1", OFFER)
        await asyncio.to_thread(deaf.read_bytes)
        await provider.terminate("n-1", 0.05)
        assert await _next(provider) == NodeGone("n-1", "exit status -9")


async def test_a_stopped_node_can_be_killed(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        provider = make()
        os.kill(_pid(await provider.launch("n-1", OFFER)), signal.SIGSTOP)
        await provider.terminate("n-1", 0)
        assert await _next(provider) == NodeGone("n-1", "exit status -9")


async def test_a_strange_node_is_never_killed(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        with pytest.raises(FailedPrecondition):
            await make().terminate("n-9", 0)


async def test_a_command_that_does_not_exist_is_no_capacity(tmp_path: Path) -> None:
    async with _provider(tmp_path, ("/nowhere/engine",)) as make:
        await _refused(make(), "No such file")


async def test_a_log_directory_that_cannot_be_is_no_capacity(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("no directory")
    async with _provider(tmp_path) as make:
        await _refused(make(), "Not a directory|File exists")


@pytest.mark.parametrize("lacking", ["pidfd_open", "start_time"])
async def test_a_child_that_cannot_be_watched_does_not_live_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    asked: list[int] = []

    def no_more(pid: int) -> int:
        asked.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    if lacking == "pidfd_open":
        monkeypatch.setattr(os, "pidfd_open", no_more)
    else:
        monkeypatch.setattr(processes, "start_time", no_more)
    before = _open_files()
    async with _provider(tmp_path) as make:
        await _refused(make(), "Too many open files")
        with pytest.raises(ProcessLookupError):
            os.kill(asked[0], 0)
        assert _open_files() == before


async def test_only_the_newest_log_files_are_kept(tmp_path: Path) -> None:
    async with _provider(tmp_path, (sys.executable, "-c", "pass")) as make:
        provider = make(log_files_kept=2)
        for number in range(4):
            await provider.launch(f"n-{number}", OFFER)
            await _next(provider)
        assert len(list((tmp_path / "logs").iterdir())) == 3


async def test_each_offer_has_a_command_of_its_own(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        other = replace(OFFER, offer_id="other", shape=replace(SHAPE, backend="vllm"))
        provider = make(offers=(OFFER, other))
        provider._command = lambda offer: (sys.executable, "-c", f"exit({offer.shape.backend!r})")
        for number, offer in enumerate((OFFER, other)):
            await provider.launch(f"n-{number}", offer)
            gone = await _next(provider)
            assert gone == NodeGone(f"n-{number}", f"exit status 1: {offer.shape.backend}")


async def test_the_log_of_a_node_that_lives_is_kept_however_old(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        provider = make(log_files_kept=1)
        await provider.launch("n-1", OFFER)
        provider._command = lambda offer: (sys.executable, "-c", "pass")
        for number in range(2, 5):
            await provider.launch(f"n-{number}", OFFER)
            await _next(provider)
        assert (tmp_path / "logs" / "n-1.log").exists()


async def test_an_external_node_is_waited_for_and_never_ended() -> None:
    provider = ExternalProvider()
    assert (provider.capabilities, provider.offers()) == (Capabilities(), ())
    assert await provider.launch("n-1", OFFER) == ""
    assert await provider.adopt("n-1", "")
    assert await provider.recognise(_facts("n-1", 1)) == ""
    assert provider.offer_of("n-1") == ""
    with pytest.raises(FailedPrecondition):
        await provider.terminate("n-1", 0)
    with pytest.raises(FailedPrecondition):
        provider.give_notice("n-1", 1.0, NoticeKind.OPERATOR)
    await provider.close()
    (failed,) = [event async for event in provider.events()]
    assert isinstance(failed, LaunchFailed)


async def test_an_engine_that_would_first_serve_on_is_asked_twice(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; told = []; "
        "signal.signal(signal.SIGTERM, lambda *_: told and sys.exit(7) or told.append(1)); "
        "open(sys.argv[1], 'w').close(); [time.sleep(0.01) for _ in range(60_000)]"
    )
    marker = tmp_path / "set"
    async with _provider(tmp_path, (sys.executable, "-c", code, str(marker))) as make:
        provider = make()
        await provider.launch("n-1", OFFER)
        async with asyncio.timeout(60):
            while not marker.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await provider.terminate("n-1", 20)
        assert await _next(provider) == NodeGone("n-1", "exit status 7")


async def test_it_holds_what_it_started_and_nothing_else(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        provider = make()
        await provider.launch("n-1", OFFER)
        assert (provider.holds("n-1"), provider.holds("n-2")) == (True, False)
    assert not ExternalProvider().holds("n-1")


async def test_a_node_that_is_given_notice_is_killed_at_its_deadline(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        provider = make(clock=lambda: 100.0)
        await provider.launch("n-1", OFFER)
        provider.give_notice("n-1", 0.05, NoticeKind.OPERATOR)
        assert await _next(provider) == NodeNotice("n-1", 100.05, NoticeKind.OPERATOR)
        assert await _next(provider) == NodeGone("n-1", "exit status -9")
        with pytest.raises(FailedPrecondition):
            provider.give_notice("n-1", 0.05, NoticeKind.OPERATOR)


async def test_of_several_notices_the_earliest_counts_and_is_told(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        provider = make(clock=lambda: 0.0)
        await provider.launch("n-1", OFFER)
        for notice_s in (600.0, 900.0, 600.0, 0.05, 300.0):
            provider.give_notice("n-1", notice_s, NoticeKind.OPERATOR)
        told = [await _next(provider) for _ in range(3)]
    assert [event.deadline_s for event in told[:2]] == [600.0, 0.05]  # type: ignore[attr-defined]
    assert told[2] == NodeGone("n-1", "exit status -9")


async def test_a_notice_ends_with_its_node(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        provider = make()
        await provider.launch("n-1", OFFER)
        provider.give_notice("n-1", 600.0, NoticeKind.OPERATOR)
        await provider.terminate("n-1", 0)
        assert [type(await _next(provider)) for _ in range(2)] == [NodeNotice, NodeGone]
        await provider.launch("n-2", OFFER)
        provider.give_notice("n-2", 600.0, NoticeKind.OPERATOR)
        assert list(provider._deadlines) == ["n-2"]
        await _next(provider)


async def test_what_is_used_up_is_refused_until_a_node_of_it_ends(tmp_path: Path) -> None:
    few = replace(OFFER, count=1)
    async with _provider(tmp_path) as make:
        provider = make(offers=(few,))
        await provider.launch("n-0", few)
        await _refused(provider, "no capacity", few)
        await provider.terminate("n-0", 0)
        await _next(provider)
        assert await provider.launch("n-2", few)


async def test_what_is_not_offered_is_refused(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        await _refused(make(), "no capacity", replace(OFFER, offer_id="spot-b"))


async def test_a_launch_takes_its_time_and_can_be_called_off(tmp_path: Path) -> None:
    slow = replace(OFFER, launch_s=600.0, count=1)
    async with _provider(tmp_path) as make:
        provider = make(offers=(slow,))
        launching = asyncio.create_task(provider.launch("n-1", slow))
        await asyncio.sleep(0)
        assert provider.holds("n-1")
        assert await provider.launch("n-1", slow) == ""
        await provider.terminate("n-1", 0)
        assert await launching == ""
        assert await _next(provider) == LaunchFailed("n-1", "called off")
        soon = asyncio.create_task(provider.launch("n-2", replace(slow, launch_s=0.02)))
        assert await soon


async def test_a_launch_fails_when_its_offer_is_gone_by_its_time(tmp_path: Path) -> None:
    slow = replace(OFFER, launch_s=0.05)
    async with _provider(tmp_path) as make:
        provider = make(offers=(slow,))
        launching = asyncio.create_task(provider.launch("n-1", slow))
        await asyncio.sleep(0)
        assert provider.holds("n-1")
        provider.change("spot-a", count=0)
        assert await launching == ""
        assert isinstance(await _next(provider), OffersChanged)
        assert await _next(provider) == LaunchFailed("n-1", "no capacity", RETRY_AFTER_S)


async def test_an_offer_changes_and_says_so(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        provider = make()
        provider.change("spot-a", price_per_hour=0.75)
        provider.change("spot-a", price_per_hour=0.75)
        provider.change("spot-a", count=2)
        dearer = replace(OFFER, price_per_hour=0.75)
        assert await _next(provider) == OffersChanged((dearer,))
        assert await _next(provider) == OffersChanged((replace(dearer, count=2),))
        assert provider.offers() == (replace(dearer, count=2),)


async def test_the_oldest_nodes_of_an_offer_are_taken_first(tmp_path: Path) -> None:
    other = replace(OFFER, offer_id="spot-b")
    async with _provider(tmp_path) as make:
        provider = make(offers=(OFFER, other))
        await provider.launch("n-0", other)
        for node_id in ("n-3", "n-2", "n-1"):
            handle = await provider.launch(node_id, OFFER)
            _await_tick(handle)
        provider.take("spot-a", 1, 600.0)
        provider.take("spot-a", 1, 0.0)
        notice, gone = await _next(provider), await _next(provider)
        assert isinstance(notice, NodeNotice)
        assert (notice.node_id, notice.kind) == ("n-3", NoticeKind.SPOT)
        assert gone == NodeGone("n-2", "exit status -9")
        provider.take("spot-a", 5, 600.0)
        assert (await _next(provider)).node_id == "n-1"  # type: ignore[attr-defined]


async def test_the_next_controller_finds_what_a_node_was_launched_from(tmp_path: Path) -> None:
    few = replace(OFFER, count=1)
    async with _provider(tmp_path) as make:
        before = make(offers=(few,))
        handle = await before.launch("n-1", few)
        _await_environment(handle)
        await _forget_by_crash(before)
        after = make(offers=(few,))
        assert await after.adopt("n-1", handle)
        assert after.offer_of("n-1") == "spot-a"
        assert await after.launch("n-2", few) == ""
        assert isinstance(await _next(after), LaunchFailed)
        await after.terminate("n-1", 0)
        await _next(after)
        _reap(handle)
        assert after.offer_of("n-1") == ""


async def test_age_is_the_process_own_and_not_when_it_was_found(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        before = make()
        handles = {}
        for node_id in ("n-1", "n-2"):
            handles[node_id] = await before.launch(node_id, OFFER)
            _await_environment(handles[node_id])
            _await_tick(handles[node_id])
        await _forget_by_crash(before)
        after = make()
        for node_id in ("n-2", "n-1"):
            assert await after.adopt(node_id, handles[node_id])
        after.take("spot-a", 1, 0.0)
        assert await _next(after) == NodeGone("n-1", "process ended")
        await after.terminate("n-2", 0)
        await _next(after)
        for handle in handles.values():
            _reap(handle)
