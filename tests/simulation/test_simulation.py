"""The production cores under random fault schedules, in random markets and before a crowd; see
schedules.py, ahead.py, rounding.py, seats.py, prefixes.py, markets.py, crowds.py, departures.py,
doors.py, background.py and oracles.py.

SHUNT_SIMULATION_SCHEDULES sets how many: 3,000 by default, two thirds of faults and a third of
markets; fewer than 3,000 skip the table's bound.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ahead import CopyingSchedule
from background import ResponseSchedule
from crowds import Crowd
from departures import Departing
from doors import Doors
from every_core import CORES, play
from faults import ROWS
from markets import HAPPENINGS, MarketSchedule
from mistakes import MISTAKES, Mistake
from phases import PHASES
from prefixes import PrefixSchedule
from rounding import RoundingSchedule, happened
from schedules import Schedule, table
from seats import SeatedSchedule
from shelves import FAULTS, Shelves
from splits import SplitSchedule

ROOT = Path(__file__).parents[2]
SCHEDULES = int(os.environ.get("SHUNT_SIMULATION_SCHEDULES", "3000"))
MARKETS = SCHEDULES // 3
LEAST_HITS = 20
COVERED_SEEDS = {
    "schedules.py": 160,
    "markets.py": 150,
    "departures.py": 40,
    "splits.py": 60,
    "ahead.py": 20,
    "prefixes.py": 10,
    "shelves.py": 20,
    "doors.py": 15,
    "background.py": 15,
}
MISTAKE_SEEDS = {
    "schedules.py": 300,
    "markets.py": 450,
    "crowds.py": 6,
    "departures.py": 100,
    "splits.py": 60,
    "ahead.py": 60,
    "seats.py": 15,
    "prefixes.py": 40,
    "shelves.py": 10,
    "doors.py": 30,
    "background.py": 15,
    "rounding.py": 60,
}
AHEAD = 25
ROUNDED = 40
SEATED = 6
FETCHING = 20
SHELVES = 50
CROWDS = 8
DEPARTING = 45
SPLIT = 40
DOORS = 25
RESPONSES = 40
FOLDERS = (
    "services/common",
    "services/controller/core",
    "services/engine/core",
    "services/router/core",
)
PURE = (
    "services/common/generation.py",
    "services/common/prefix.py",
    "services/common/token_run.py",
    *FOLDERS[1:],
)
"""Every file of theirs counts, whether anything imports it or not, but those below."""
ELSEWHERE = (
    "services/controller/core/model_facts.py",  # a value with a codec: nothing happens to it
    "services/controller/core/cluster/goals.py",  # what operators wish, and a codec
    "services/controller/core/cluster/snapshot.py",  # notes of older controllers
    "services/engine/core/memory.py",  # simulated stages weigh nothing
    "services/engine/core/throttle.py",  # and take the time that a schedule gives them
    "services/router/core/body_budget.py",  # of HTTP, which no schedule speaks
    "services/router/core/bounded_names.py",  # of metrics
    "services/router/core/latencies.py",
    "services/controller/core/cluster/targets.py",
    "services/router/core/files.py",  # simulated clients hand in no files
    "services/router/core/batches/batch.py",
    "services/router/core/batches/lines.py",
    "services/router/core/batches/results.py",
    "services/router/core/batches/window.py",
    "services/controller/core/documents.py",
    "services/router/core/calls/hermes.py",  # simulated models neither call nor think
    "services/router/core/calls/json_call.py",
    "services/router/core/calls/llama.py",
    "services/router/core/calls/mistral.py",
    "services/router/core/calls/pythonic.py",
    "services/router/core/calls/run.py",
    "services/router/core/thoughts.py",
    "services/router/core/until.py",
    "services/engine/core/kv_layout.py",  # simulated stages have no heads to join
    "services/engine/core/rate.py",
    "services/controller/core/cluster/given_stages.py",  # and have the stages that placement gives
)
"""Driven by unit and contract tests alone; a schedule that comes to one of them strikes it out."""


def run_seeds(
    program: str, *arguments: str, root: Path, tool: tuple[str, ...] = ()
) -> tuple[int, str]:
    """Schedules or crowds as a program, over the cores under `root`."""
    done = subprocess.run(
        [sys.executable, *tool, str(Path(__file__).parent / program), *arguments],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.timeout(1500)
def test_every_invariant_holds_and_every_fault_meets_every_phase() -> None:
    count = SCHEDULES - MARKETS
    hits = play(Schedule, range(count))
    print(f"\n{count} schedules, 0 violations: below {3 / count:.2%} with 95 % confidence")
    print(table(hits))
    rare = [cell for row in ROWS for phase in PHASES if hits[cell := (row, phase)] < LEAST_HITS]
    assert SCHEDULES < 3000 or not rare


@pytest.mark.timeout(600)
def test_every_invariant_holds_where_blocks_go_ahead() -> None:
    went = 0
    for seed in range(AHEAD):
        schedule = CopyingSchedule(seed)
        try:
            schedule.run()
        except Exception as error:
            error.add_note(f"seed {seed} of those in which blocks go ahead")
            raise
        went += len(schedule.world.environment.kept_blocks) > 0
    assert went > AHEAD / 4


@pytest.mark.timeout(600)
def test_ids_behind_rounded_blocks_are_declared_and_no_others_go_on_from_them() -> None:
    seen = Counter[str]()
    for seed in range(ROUNDED):
        schedule = RoundingSchedule(seed)
        try:
            schedule.run()
        except Exception as error:
            error.add_note(f"seed {seed} of those in which blocks are rounded")
            raise
        seen += happened(schedule)
    assert seen["asked"] > seen["declared"] > ROUNDED / 5


@pytest.mark.timeout(600)
def test_what_lies_in_its_place_is_what_it_is_named_for() -> None:
    blocks = Counter[str]()
    for seed in range(SEATED):
        schedule = SeatedSchedule(seed)
        try:
            schedule.run()
        except Exception as error:
            error.add_note(f"seed {seed} of those in the same seats")
            raise
        blocks += schedule.oracle.blocks
    assert min(blocks[kind] for kind in ("kept", "found", "in place")) > 5 * SEATED


@pytest.mark.timeout(600)
def test_every_invariant_holds_where_pipelines_fetch_beginnings_of_prompts() -> None:
    came = Counter[str]()
    for seed in range(FETCHING):
        schedule = PrefixSchedule(seed)
        try:
            schedule.run()
        except Exception as error:
            error.add_note(f"seed {seed} of those that fetch beginnings")
            raise
        came += schedule.world.environment.prefixes
    print(f"\n{FETCHING} schedules, 0 violations: {dict(came)}")
    assert came["came"] > FETCHING // 2
    assert came["missed"] > 0


@pytest.mark.timeout(600)
def test_what_a_process_takes_for_a_block_is_the_block() -> None:
    happened = Counter[str]()
    for seed in range(SHELVES):
        shelves = Shelves(seed)
        try:
            shelves.run()
        except Exception as error:
            error.add_note(f"seed {seed} of the shelves")
            raise
        happened += shelves.happened
    assert min(happened[kind] for kind in (*FAULTS[3:], "full", "renewed", "whole True")) > SHELVES


@pytest.mark.timeout(1500)
def test_every_invariant_holds_in_markets_and_everything_happens_in_them() -> None:
    happened = play(MarketSchedule, range(MARKETS))
    print(f"\n{MARKETS} markets, 0 violations: {dict(happened)}")
    rare = [event for event in HAPPENINGS if happened[event] < LEAST_HITS]
    assert MARKETS < 1000 or not rare


@pytest.mark.timeout(300)
def test_a_crowd_at_slow_processes_moves_nothing() -> None:
    for seed in range(CROWDS):
        crowd = Crowd(seed)
        try:
            crowd.run()
        except Exception as error:
            error.add_note(f"seed {seed} of the crowds")
            raise


@pytest.mark.timeout(600)
def test_a_formation_that_departs_is_left_in_time_and_not_before() -> None:
    departures = moved = stayed = 0
    for seed in range(DEPARTING):
        schedule = Departing(seed)
        try:
            schedule.run()
        except Exception as error:
            error.add_note(f"seed {seed} of the departures")
            raise
        departures += schedule.oracle.departures
        moved += sum(schedule.oracle.planned.values())
        stayed += schedule.oracle.stayed
    assert departures >= DEPARTING
    assert stayed > moved > 0, "most end where they are, and some do not"


@pytest.mark.timeout(1500)
def test_generations_begin_and_go_on_where_the_plan_says() -> None:
    handed_on = flips = 0
    for seed in range(SPLIT):
        schedule = SplitSchedule(seed)
        try:
            schedule.run()
        except Exception as error:
            error.add_note(f"seed {seed} of the splits")
            raise
        handed_on += schedule.oracle.handed_on.total()
        flips += schedule.flips
    print(f"\n{SPLIT} schedules, {handed_on} hand-ons, {flips} flips, 0 violations")
    assert handed_on > SPLIT
    assert flips > SPLIT // 4


@pytest.mark.timeout(600)
def test_who_is_let_in_has_his_place_and_his_part_and_leaves_nothing_behind() -> None:
    happened = Counter[str]()
    for seed in range(DOORS):
        doors = Doors(seed)
        try:
            doors.run()
        except Exception as error:
            error.add_note(f"seed {seed} of the doors")
            raise
        happened += doors.happened
    print(f"\n{DOORS} doors, 0 violations: {dict(happened)}")
    everything = ("sent", "ended", "moved", "told again", "read again", "controllers")
    refusals = ("refused: place", "refused: quota", "refused: time", "refused: no pipeline")
    departures = ("left reading", "left waiting", "left running")
    assert min(happened[kind] for kind in (*everything, *refusals, *departures)) >= LEAST_HITS
    assert happened["joined"] > DOORS // 4, "routers come beside others in a third of them"


@pytest.mark.timeout(600)
def test_whoever_was_told_the_id_of_a_response_finds_it_whoever_is_gone() -> None:
    happened = Counter[str]()
    for seed in range(RESPONSES):
        schedule = ResponseSchedule(seed)
        try:
            schedule.run()
        except Exception as error:
            error.add_note(f"seed {seed} of the responses")
            raise
        happened += schedule.oracle.happened
    print(f"\n{RESPONSES} schedules of responses, 0 violations: {dict(happened)}")
    assert min(happened[kind] for kind in ("named", "stored", "found")) > RESPONSES
    for kind in ("read on by number", "read on by ids", "hung up", "deleted"):
        assert happened[kind] > LEAST_HITS
    for kind in ("cancelled", "cancelled behind its end", "left unnamed", "crash", "both"):
        assert happened[kind] > 5


@pytest.mark.parametrize("kind", [Schedule, MarketSchedule])
@pytest.mark.parametrize("seed", [3, 8, 103])
def test_the_same_seed_replays_the_same_events(
    seed: int, kind: type[Schedule] | type[MarketSchedule]
) -> None:
    traces = []
    for _ in range(2):
        schedule = kind(seed)
        schedule.run()
        traces.append(schedule.oracle.trace)
    assert len(traces[0]) > 50
    assert traces[0] == traces[1]


@pytest.mark.timeout(1500)
def test_the_simulation_alone_covers_the_branches_of_the_cores(tmp_path: Path) -> None:
    measured = ("-W", "ignore", "-m", "slipcover", "--branch", "--json")
    assert all((ROOT / path).exists() for path in ELSEWHERE)

    def covered(program: str) -> tuple[int, str]:
        tool = (*measured, "--source", ",".join(FOLDERS), "--out", str(tmp_path / program))
        seeds = str(COVERED_SEEDS[program])
        return run_seeds(program, "10000", seeds, "1", root=ROOT, tool=tool)

    with ThreadPoolExecutor(CORES) as programs:
        for code, said in programs.map(covered, COVERED_SEEDS):
            assert code == 0, said
    came, there_are = set[tuple[str, str]](), set[tuple[str, str]]()
    for program in COVERED_SEEDS:
        files = json.loads((tmp_path / program).read_text())["files"]
        for path, found in files.items():
            if path.startswith(PURE) and path not in ELSEWHERE:
                for kind in ("lines", "branches"):
                    passed = {(path, str(one)) for one in found[f"executed_{kind}"]}
                    came |= passed
                    there_are |= passed | {(path, str(one)) for one in found[f"missing_{kind}"]}
    assert {path for path, _ in there_are} == _cores()
    print(f"\nbranch coverage from the simulation: {len(came) / len(there_are):.1%}")
    assert len(came) >= 0.95 * len(there_are)


def _cores() -> set[str]:
    """Files of the cores that count, but those in which nothing stands."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    names = {str(path.relative_to(ROOT)) for path in found if path.stat().st_size}
    return {name for name in names if name.startswith(PURE) and name not in ELSEWHERE}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_each_seeded_mistake_is_caught(mistake: Mistake, tmp_path: Path) -> None:
    for folder in ("services", "simulator"):
        shutil.copytree(ROOT / folder, tmp_path / folder)  # what is compiled, too
    core = tmp_path / mistake.path
    text = core.read_text()
    assert text.count(mistake.right) == 1
    core.write_text(text.replace(mistake.right, mistake.wrong))
    seeds = str(MISTAKE_SEEDS[mistake.program])
    code, said = run_seeds(mistake.program, str(mistake.first), seeds, "1", root=tmp_path)
    shutil.rmtree(tmp_path)
    assert code == 1, said
    caught = [line for line in said.splitlines() if ": Violation: " in line]
    assert caught, said
    print(f"\n{mistake.name}: {caught[0]}")
