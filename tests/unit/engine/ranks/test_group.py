"""Ranks end together, whatever befalls one of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from services.common.errors import DataLoss, InvalidArgument, Superseded, Unavailable
from services.common.generation import Sampling
from services.engine.backend import Batch, SequenceOpen, SequenceStep
from services.engine.ranks.group import Patience, RankGroup
from services.engine.ranks.loader import RankedLoader
from services.engine.ranks.stage import RankedStage
from tests.contract.engine.tiny import LAYER_BYTES, LAYERS, TinyLoader, expected_ids
from tests.unit.engine.ranks.plain_ranks import BAD_ID, SLOW_ID, WHOLE, Ranks

ROOT = Path(__file__).parents[4]
TIMEOUT_S = 60.0


@pytest.fixture
def loaded(request):
    """A function to a stage of two ranks, that has a cache."""
    stages = []

    def load(ranks=None, **patience):
        stage = _load(ranks or Ranks(), **patience)
        stages.append(stage)
        stage.begin(8)
        return stage

    yield load
    for stage in stages:
        stage.close()


def _load(ranks, progress=lambda done, total: None, **patience):
    loader = RankedLoader(TinyLoader(), ranks, patience=Patience(**patience))
    stage = loader.load(*WHOLE, progress)
    assert isinstance(stage, RankedStage)
    return stage


def _prefill(*ids):
    """A batch of one sequence, and its rows."""
    opened = SequenceOpen(0, Sampling(8, temperature=0.0), 0, ids)
    return Batch([SequenceStep(0, 0, len(ids), [0], True)], [opened]), list(ids)


def _wait_until_gone(pids):
    done = threading.Event()
    for _ in range(int(TIMEOUT_S / 0.05)):
        if not any(_runs(pid) for pid in pids):
            return
        done.wait(0.05)
    raise AssertionError("a rank is left over")


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_all_ranks_compute_and_rank_zero_answers(loaded):
    stage = loaded()
    (first,) = stage.forward(*_prefill(5, 6, 7))
    (second,) = stage.forward(Batch([SequenceStep(0, 3, 1, [0], True)]), [first.token_id])
    assert [first.token_id, second.token_id] == expected_ids([5, 6, 7], 2)
    assert stage.facts.numerics_class == "exact-tiny"
    held = stage.resident_layers()
    assert list(held) == list(range(LAYERS))
    assert held[0].tensors[0].size_bytes == 2 * LAYER_BYTES
    assert held[0].packed_bytes == 2 * 64
    assert stage.lost == ""
    pids = stage.pids
    assert len(set(pids)) == 2
    stage.close()
    assert not any(map(_runs, pids))


def test_what_all_ranks_refuse_is_raised_as_it_is_and_they_go_on(loaded):
    stage = loaded()
    stage.forward(*_prefill(5))
    with pytest.raises(InvalidArgument, match="slot is taken") as caught:
        stage.forward(*_prefill(5))
    assert caught.value.field == "opens.slot"
    stage.end()
    stage.begin(8)
    assert stage.forward(*_prefill(5))[0].token_id == expected_ids([5], 1)[0]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_stops_in_a_step_ends_the_stage_and_all_others(loaded, rank, sent):
    stage = loaded(Ranks(meets=True), step_s=1.0)
    pids = stage.pids
    os.kill(pids[rank], signal.SIGSTOP)  # so that the step is not over before
    fault = []

    def step():
        try:
            stage.forward(*_prefill(5, 6))
        except DataLoss as error:
            fault.append(error)

    stepping = threading.Thread(target=step)
    stepping.start()
    os.kill(pids[rank], sent)
    stepping.join(TIMEOUT_S)
    why = f"rank {rank} of 2 ended: -9" if sent == signal.SIGKILL else "does not come back"
    assert why in stage.lost
    assert why in fault[0].message
    _wait_until_gone(pids)
    with pytest.raises(DataLoss, match="the stage is gone"):
        stage.begin(8)
    stage.end()
    stage.close()


def test_a_rank_that_dies_while_nothing_is_computed_is_noticed(loaded):
    stage = loaded()
    pids = stage.pids
    os.kill(pids[1], signal.SIGKILL)
    _wait_until_gone(pids)
    with pytest.raises(DataLoss, match="rank 1 of 2 ended: -9"):
        stage.begin(8)
    assert stage.lost == "rank 1 of 2 ended: -9"


def test_a_fault_of_one_rank_alone_ends_the_stage(loaded):
    stage = loaded(Ranks(meets=True))
    with pytest.raises(DataLoss, match="rank 1 of 2 ended: 1"):
        stage.forward(*_prefill(BAD_ID))


def test_a_step_that_is_slow_is_not_stuck(loaded):
    stage = loaded(step_s=5.0)
    assert stage.forward(*_prefill(SLOW_ID))[0].token_id == expected_ids([SLOW_ID], 1)[0]


def test_progress_is_of_all_ranks_and_what_it_raises_ends_them():
    seen, pids = [], []

    def progress(done, total):
        seen.append((done, total))
        if total == 200:
            pids.extend(_children())
            raise Superseded("enough")

    with pytest.raises(Superseded):
        _load(Ranks(load_s=30.0), progress)
    assert seen[-1] == (30, 200)
    assert len(pids) == 2
    _wait_until_gone(pids)


def _children():
    """Of this process, as far as they are ranks."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            command = path.with_name("cmdline").read_bytes()
        except (OSError, IndexError):
            continue
        if parent == os.getpid() and b"services.engine.ranks.process" in command:
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize(
    ("trouble", "kind", "said"),
    [("data", DataLoss, "a tile is damaged"), ("fault", Unavailable, "rank 1 of 2 ended: 1")],
)
def test_what_a_load_comes_to_is_said_and_no_rank_is_left(trouble, kind, said):
    with pytest.raises(kind, match=said):
        _load(Ranks(trouble))
    assert _children() == []


def test_a_rank_that_is_stopped_while_it_loads_is_given_up():
    def progress(done, total):
        if total == 200:
            os.kill(_children()[1], signal.SIGSTOP)

    with pytest.raises(Unavailable, match="of 2 does not load"):
        _load(Ranks(load_s=30.0), progress, silent_s=2.0)
    assert _children() == []


def test_ranks_end_with_an_engine_that_is_killed():
    code = (
        "import time; from tests.unit.engine.ranks.test_group import _load, Ranks;"
        "stage = _load(Ranks()); stage.begin(8); print(*stage.pids, flush=True); time.sleep(600)"
    )
    engine = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    line = engine.stdout.readline()
    assert line, f"it ended before its ranks served, with {engine.wait(TIMEOUT_S)}: see above"
    pids = list(map(int, line.split()))
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGSTOP)  # it reads no end of any line
    engine.kill()
    engine.communicate()
    _wait_until_gone(pids)


def test_ranks_outlive_the_thread_that_had_them_started():
    stages = []
    thread = threading.Thread(target=lambda: stages.append(_load(Ranks())))
    thread.start()
    thread.join(TIMEOUT_S)
    stages[0].begin(8)
    assert stages[0].forward(*_prefill(7))[0].token_id == expected_ids([7], 1)[0]
    stages[0].close()


def test_ranks_that_cannot_be_started_are_no_stage(monkeypatch):
    monkeypatch.setattr("services.engine.ranks.group.COMMAND", ("/no/such/program",))
    with pytest.raises(Unavailable, match="the ranks do not start"):
        _load(Ranks())


def test_one_rank_needs_no_process():
    loader = RankedLoader(TinyLoader(), Ranks())
    stage = loader.load(WHOLE[0], replace(WHOLE[1], tp_degree=1), lambda done, total: None)
    assert not isinstance(stage, RankedStage)
    assert _children() == []


def test_a_group_that_is_let_go_of_twice_is_gone_once():
    group = RankGroup(2)
    pids = group.pids
    group.close()
    group.close()
    assert not any(map(_runs, pids))
