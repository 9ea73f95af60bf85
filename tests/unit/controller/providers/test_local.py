from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.common import mesh_token
from services.common.errors import FailedPrecondition, Unavailable
from services.common.nodes import NodeShape
from services.controller.providers import local as provider_local
from services.controller.providers.local import LocalProvider
from services.controller.providers.provider import ExternalProvider, NodeGone

SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "open(sys.argv[1], 'w').close(); time.sleep(600)",
)
SHAPE = NodeShape(memory_bytes=1 << 30, relative_speed=3.0)
Make = Callable[..., LocalProvider]


@asynccontextmanager
async def _provider(tmp_path: Path, command: tuple[str, ...] = SLEEPER) -> AsyncIterator[Make]:
    made: list[LocalProvider] = []

    def make(**more: object) -> LocalProvider:
        made.append(
            LocalProvider(
                environment=lambda shape: {"SPEED": str(shape.relative_speed)},
                log_dir=tmp_path / "logs",
                command=more.pop("command", command),  # type: ignore[arg-type]
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
    return await asyncio.wait_for(anext(provider.events()), 20)


def _pid(handle: str) -> int:
    return int(handle.partition(":")[0])


def _reap(handle: str) -> None:
    os.waitpid(_pid(handle), 0)


def _await_environment(handle: str) -> None:
    """A process that has just been started shows no environment for a moment."""
    while not Path(f"/proc/{_pid(handle)}/environ").read_bytes():
        os.sched_yield()


def _variables(handle: str) -> list[str]:
    _await_environment(handle)
    return Path(f"/proc/{_pid(handle)}/environ").read_text().split("\0")


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
        handle = await make().launch("n-1", SHAPE)
        variables = _variables(handle)
    assert f"{mesh_token.VARIABLE}={mesh_token.of_node(token, 'n-1')}" in variables
    assert f"{mesh_token.FILE_VARIABLE}=" in variables
    assert not [variable for variable in variables if token in variable or str(path) in variable]


async def test_a_killed_node_is_known_at_once(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        provider = make()
        handle = await provider.launch("n-1", SHAPE)
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
        await provider.launch("n-1", SHAPE)
        assert await _next(provider) == NodeGone("n-1", reason)


async def test_a_node_runs_in_a_session_of_its_own(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        pid = _pid(await make().launch("n-1", SHAPE))
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
        await provider.launch("n-1", SHAPE)
        await _next(provider)
        assert (tmp_path / "logs" / "n-1.log").read_text() == "n-1 3.0\n"


async def test_a_doubled_launch_starts_one_process(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        provider = make()
        assert await provider.launch("n-1", SHAPE) == await provider.launch("n-1", SHAPE)


async def test_a_restarted_provider_adopts_a_living_node(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        before = make()
        handle = await before.launch("n-1", SHAPE)
        await _forget_by_crash(before)
        after = make()
        assert await after.adopt("n-1", handle)
        assert await after.adopt("n-1", handle)
        await after.terminate("n-1", 0)
        assert await _next(after) == NodeGone("n-1", "process ended")
        _reap(handle)


async def test_a_process_that_took_over_the_pid_is_not_adopted(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        handle = await make().launch("n-1", SHAPE)
        assert not await make().adopt("n-2", f"{_pid(handle)}:1")
        assert not await make().adopt("n-2", "4194305:1")
        assert not await make().adopt("n-2", "nonsense")


async def test_a_node_whose_handle_was_never_journaled_is_recognised(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        before = make()
        handle = await before.launch("n-1", SHAPE)
        _await_environment(handle)
        await _forget_by_crash(before)
        after = make()
        assert await after.recognise("n-2", _pid(handle)) == ""
        assert await after.recognise("n-1", 4194305) == ""
        assert await after.recognise("n-1", _pid(handle)) == handle
        await after.terminate("n-1", 0)
        await _next(after)
        _reap(handle)


async def test_a_node_that_heeds_its_grace_is_not_killed(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        provider = make()
        await provider.launch("n-1", SHAPE)
        await provider.terminate("n-1", 20)
        assert await _next(provider) == NodeGone("n-1", f"exit status -{int(signal.SIGTERM)}")


async def test_a_node_that_outlives_its_grace_is_killed(tmp_path: Path) -> None:
    deaf = tmp_path / "deaf"
    os.mkfifo(deaf)
    async with _provider(tmp_path, (*STUBBORN, str(deaf))) as make:
        provider = make()
        await provider.launch("n-1", SHAPE)
        await asyncio.to_thread(deaf.read_bytes)
        await provider.terminate("n-1", 0.05)
        assert await _next(provider) == NodeGone("n-1", "exit status -9")


async def test_a_stopped_node_can_be_killed(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        provider = make()
        os.kill(_pid(await provider.launch("n-1", SHAPE)), signal.SIGSTOP)
        await provider.terminate("n-1", 0)
        assert await _next(provider) == NodeGone("n-1", "exit status -9")


async def test_a_strange_node_is_never_killed(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        with pytest.raises(FailedPrecondition):
            await make().terminate("n-9", 0)


async def test_a_command_that_does_not_exist_is_no_capacity(tmp_path: Path) -> None:
    async with _provider(tmp_path, ("/nowhere/engine",)) as make:
        with pytest.raises(Unavailable):
            await make().launch("n-1", SHAPE)


async def test_a_log_directory_that_cannot_be_is_no_capacity(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("no directory")
    async with _provider(tmp_path) as make:
        with pytest.raises(Unavailable):
            await make().launch("n-1", SHAPE)


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
        monkeypatch.setattr(provider_local, "_start_time", no_more)
    before = _open_files()
    async with _provider(tmp_path) as make:
        with pytest.raises(Unavailable, match="Too many open files"):
            await make().launch("n-1", SHAPE)
        with pytest.raises(ProcessLookupError):
            os.kill(asked[0], 0)
        assert _open_files() == before


async def test_only_the_newest_log_files_are_kept(tmp_path: Path) -> None:
    async with _provider(tmp_path, (sys.executable, "-c", "pass")) as make:
        provider = make(log_files_kept=2)
        for number in range(4):
            await provider.launch(f"n-{number}", NodeShape(1, 1.0))
            await _next(provider)
        assert len(list((tmp_path / "logs").iterdir())) == 3


async def test_the_log_of_a_node_that_lives_is_kept_however_old(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        provider = make(log_files_kept=1)
        await provider.launch("n-1", SHAPE)
        provider._command = (sys.executable, "-c", "pass")
        for number in range(2, 5):
            await provider.launch(f"n-{number}", NodeShape(1, 1.0))
            await _next(provider)
        assert (tmp_path / "logs" / "n-1.log").exists()


async def test_an_external_node_is_waited_for_and_never_ended() -> None:
    provider = ExternalProvider()
    assert await provider.launch("n-1", SHAPE) == ""
    assert await provider.adopt("n-1", "")
    assert await provider.recognise("n-1", 1) == ""
    with pytest.raises(FailedPrecondition):
        await provider.terminate("n-1", 0)
    await provider.close()
    assert [event async for event in provider.events()] == []


async def test_an_engine_that_would_first_serve_on_is_asked_twice(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; told = []; "
        "signal.signal(signal.SIGTERM, lambda *_: told and sys.exit(7) or told.append(1)); "
        "open(sys.argv[1], 'w').close(); [time.sleep(0.01) for _ in range(60_000)]"
    )
    marker = tmp_path / "set"
    async with _provider(tmp_path, (sys.executable, "-c", code, str(marker))) as make:
        provider = make()
        await provider.launch("n-1", SHAPE)
        async with asyncio.timeout(20):
            while not marker.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await provider.terminate("n-1", 20)
        assert await _next(provider) == NodeGone("n-1", "exit status 7")


async def test_it_holds_what_it_started_and_nothing_else(tmp_path: Path) -> None:
    async with _provider(tmp_path) as make:
        provider = make()
        await provider.launch("n-1", SHAPE)
        assert (provider.holds("n-1"), provider.holds("n-2")) == (True, False)
    assert not ExternalProvider().holds("n-1")
