"""A recording that is made from a known profile is fitted back to it, and replayed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from services.common.errors import FailedPrecondition, InvalidArgument
from services.placement.estimate.engine import BatchBounds, EngineProfile, StageCosts
from services.placement.estimate.microbatches import Microbatches
from simulator.fleet.batch import Batch, Generation
from simulator.fleet.fidelity import repeated, replayed
from simulator.fleet.fitting import fit
from simulator.fleet.measured import MeasuredTimes
from simulator.fleet.played import play
from simulator.fleet.recording import (
    EventRow,
    Header,
    Line,
    Recording,
    RequestRow,
    Stage,
    WindowRow,
    read_recording,
)
from simulator.fleet.result import tpot_s, ttft_s
from simulator.fleet.stretch import Stretch
from simulator.fleet.work import Work

BOUNDS = BatchBounds(token_budget=256, max_sequences=64)
STAGES = (
    Stage(node="a", offer="cpu", begin=0, end=2),
    Stage(node="b", offer="cpu", begin=2, end=4),
)
TRUE = EngineProfile(
    **BOUNDS.model_dump(),
    name="true",
    stages={
        STAGES[0].kind: StageCosts(step_s=0.004, row_s=0.0005, prompt_row_s=0.0002, context_s=1e-6),
        STAGES[1].kind: StageCosts(step_s=0.006, row_s=0.0004, prompt_row_s=0.0003, context_s=2e-6),
    },
    cycle_s=0.003,
    first_s=0.01,
)


class _Told(MeasuredTimes):
    """Keeps what a cycle was made of."""

    def cycle_s(self, decoding: int, context: float, prompt_rows: int, prompts: int) -> float:
        self.cycle = decoding, context, prompt_rows, prompts
        return super().cycle_s(decoding, context, prompt_rows, prompts)


def made(seed: int, requests: int = 120, seconds: float = 60.0) -> Recording:
    """As a mesh of exactly these costs would be recorded, in windows of half a second."""
    random = Random(seed)
    arrivals = sorted(random.uniform(0, 0.9 * seconds) for _ in range(requests))
    asked = [
        Generation(n, at_s, random.randint(8, 300), random.randint(4, 60))
        for n, at_s in enumerate(arrivals)
    ]
    times = _Told(TRUE, [stage.kind for stage in STAGES])
    batch, now_s, coming = Batch(times), 0.0, 0
    tokens: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
    sums: dict[int, list[float]] = {}
    while True:
        while coming < requests and asked[coming].arrival_s + TRUE.first_s <= now_s:
            batch.add(asked[coming])
            coming += 1
        took_s = batch.begin()
        if took_s is None:
            if coming == requests:
                break
            now_s = asked[coming].arrival_s + TRUE.first_s
            continue
        now_s += took_s
        batch.end(now_s)
        batch.settle()
        decoding, context, rows, _ = times.cycle
        split = Microbatches.of(len(STAGES), TRUE, decoding, rows)
        window = sums.setdefault(int(now_s / 0.5), [0.0] * 5)
        stepped = [
            split.reading * costs.of(split.decoding, context, split.prompt_rows)
            + (split.count - split.reading) * costs.of(split.decoding, context, 0)
            for costs in (TRUE.stages[stage.kind] for stage in STAGES)
        ]
        for i, more in enumerate((split.count, decoding, rows, *stepped)):
            window[i] += more
        for one in asked[:coming]:
            if one.held > (tokens[one.number][-1][1] if tokens[one.number] else 0):
                tokens[one.number].append((now_s, one.held))
    lines: list[Line] = [
        RequestRow(
            number=one.number,
            arrival_s=one.arrival_s,
            prompt=one.prompt,
            output=one.output,
            pipeline="p",
            moves=0,
            outcome="finished",
            tokens=tuple(tokens[one.number]),
        )
        for one in asked
    ]
    for index, (steps, decoded, rows, *stepped) in sums.items():
        lines += [
            WindowRow(
                begin_s=index * 0.5,
                end_s=(index + 1) * 0.5,
                pipeline="p",
                stage=stage,
                steps=int(steps),
                decoded=int(decoded),
                prompt_rows=int(rows),
                stepped_s=stepped[stage],
            )
            for stage in (0, 1)
        ]
    return Recording.of(Header(seconds=seconds, pipelines={"p": STAGES}), lines)


@pytest.fixture(scope="module")
def recording() -> Recording:
    return made(1)


def test_a_known_profile_is_found_again(recording: Recording) -> None:
    profile, residuals = fit(recording, "found", BOUNDS)
    for kind, true in TRUE.stages.items():
        assert profile.stages[kind].step_s == pytest.approx(true.step_s, rel=0.05)
        assert profile.stages[kind].row_s == pytest.approx(true.row_s, rel=0.05)
        assert profile.stages[kind].prompt_row_s == pytest.approx(true.prompt_row_s, rel=0.05)
    assert profile.cycle_s == pytest.approx(TRUE.cycle_s, rel=0.1)
    assert profile.first_s == pytest.approx(TRUE.first_s, rel=0.2)
    assert all(one.error < 0.01 for one in residuals)


def test_the_other_half_is_replayed_with_small_error(recording: Recording) -> None:
    told = replayed(recording, fit(recording, "found", BOUNDS)[0])
    assert told.requests > 40
    assert abs(told.throughput_bias) < 0.01
    for one in told.metrics.values():
        assert abs(one.p50_bias) < 0.04
        assert abs(one.p99_bias) < 0.05
        assert one.error < 0.05


def test_a_wrong_profile_shows(recording: Recording) -> None:
    slow = TRUE.model_copy(update={"cycle_s": 0.02})
    told = replayed(recording, slow)
    assert told.metrics["tpot_s"].p50_bias > 0.5
    assert told.metrics["e2e_s"].error > 0.5


def test_only_the_first_half_is_fitted(recording: Recording) -> None:
    half_s = recording.header.seconds / 2
    windows = tuple(
        one if one.end_s <= half_s else one.model_copy(update={"stepped_s": 9 * one.stepped_s})
        for one in recording.windows
    )
    assert fit(replace(recording, windows=windows), "x", BOUNDS) == fit(recording, "x", BOUNDS)


def test_how_other_the_machine_was_in_the_other_half_is_told(recording: Recording) -> None:
    half_s = recording.header.seconds / 2
    windows = tuple(
        one.model_copy(update={"stepped_s": 1.25 * one.stepped_s}) if one.begin_s >= half_s else one
        for one in recording.windows
    )
    assert replayed(recording, TRUE).computed_bias == pytest.approx(0.0, abs=0.01)
    slower = replace(recording, windows=windows)
    assert replayed(slower, TRUE).computed_bias == pytest.approx(-0.2, abs=0.01)
    assert repeated(recording, slower).computed_bias == 0.0


def test_two_recordings_of_a_load_are_compared(recording: Recording) -> None:
    same = repeated(recording, recording)
    assert same.throughput_bias == same.metrics["ttft_s"].error == 0
    with pytest.raises(FailedPrecondition, match="different loads"):
        repeated(recording, made(2, requests=20))


def test_too_few_windows_are_refused(recording: Recording) -> None:
    with pytest.raises(FailedPrecondition, match="windows of cpu:0-2 have steps; 8 are needed"):
        fit(replace(recording, windows=recording.windows[:6]), "x", BOUNDS)


def test_a_recording_is_read_as_it_was_written(recording: Recording, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(recording.text())
    assert read_recording(path) == recording


@pytest.mark.parametrize(
    ("line", "text", "told"),
    [
        (1, '{"kind":"recording","version":2,"seconds":1,"pipelines":{}}', "r.jsonl:1: version: "),
        (3, '{"kind":"request","number":-1}', "r.jsonl:3: request.number: "),
        (2, "{", "r.jsonl:2: line: "),
        (2, '{"kind":"prompt"}', "r.jsonl:2: "),
    ],
)
def test_a_mistake_is_told_with_line_and_field(
    recording: Recording, tmp_path: Path, line: int, text: str, told: str
) -> None:
    path = tmp_path / "r.jsonl"
    lines = recording.text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines))
    with pytest.raises(InvalidArgument) as raised:
        read_recording(path)
    assert raised.value.message.startswith(told)


def with_a_loss(at_s: float, event: str = "pipeline_lost") -> Recording:
    """Two pipelines; the first is lost, and what it had went to the second."""
    rows = [
        RequestRow(
            number=number,
            arrival_s=float(number),
            prompt=100,
            output=60,
            pipeline="p" if number < 4 else "q",
            then=("q",) if number == 3 else (),
            moves=int(number == 3),
            outcome="finished",
            tokens=((number + 1.0, 1), (number + 2.0, 60)),
        )
        for number in range(8)
    ]
    lost = EventRow(at_s=at_s, event=event, node="", pipeline="p")
    header = Header(seconds=4.0, pipelines={"p": STAGES, "q": STAGES})
    return Recording.of(header, [*rows, lost])


def test_who_was_moved_goes_on_where_it_was_recorded_from_what_it_held() -> None:
    moved, stayed = (play(with_a_loss(at_s), TRUE) for at_s in (3.5, 100.0))
    assert [number for number, one in moved.items() if one.moves] == [3]
    assert not any(one.moves for one in stayed.values())
    assert all(one.held == one.output for one in moved.values())
    assert len(moved) == len(stayed) == 8
    assert moved[3].gap_s > TRUE.first_s
    reads_again_s = 100 * sum(one.prompt_row_s for one in TRUE.stages.values())
    assert moved[3].last_s - stayed[3].last_s > reads_again_s
    assert moved[0].last_s == stayed[0].last_s


def test_who_had_no_token_yet_was_moved_as_well() -> None:
    (one,) = (one for one in play(with_a_loss(3.02), TRUE).values() if one.moves)
    assert one.number == 3
    assert one.first_s is not None
    assert one.first_s > 3.02
    assert one.gap_s == 0.0


def test_a_planned_hand_over_moves_who_is_there_when_it_is_finished() -> None:
    began, finished = (
        play(with_a_loss(3.5, f"handover_{name}"), TRUE) for name in ("started", "finished")
    )
    assert not any(one.moves for one in began.values())
    assert [number for number, one in finished.items() if one.moves] == [3]


def test_moves_of_both_accounts_are_counted() -> None:
    told = replayed(with_a_loss(3.5), TRUE)
    assert told.moved == (1, 1)
    assert replayed(with_a_loss(100.0), TRUE).moved == (1, 0)


def busy(recording: Recording, factor: float) -> Recording:
    """What it would tell of a machine on which steps wait for a core."""
    windows = tuple(
        one.model_copy(update={"computed_s": one.stepped_s, "stepped_s": factor * one.stepped_s})
        for one in recording.windows
    )
    return replace(recording, windows=windows)


def stretch(recording: Recording) -> Stretch:
    return Stretch(recording, TRUE)


def test_steps_are_played_as_much_longer_as_the_machine_made_them(recording: Recording) -> None:
    as_it_was, slow = play(busy(recording, 1.0), TRUE), play(busy(recording, 3.0), TRUE)
    assert play(recording, TRUE)[0].last_s == as_it_was[0].last_s
    alone_s = as_it_was[0].last_s - as_it_was[0].arrival_s - TRUE.first_s
    assert slow[0].last_s - slow[0].arrival_s > 1.5 * alone_s
    assert stretch(busy(recording, 3.0)).at("p", 10.0) == pytest.approx(3.0)
    assert stretch(recording).at("p", 10.0) == 1.0


def test_what_a_step_waits_for_a_core_is_not_fitted(recording: Recording) -> None:
    one, other = (fit(busy(recording, factor), "x", BOUNDS)[0].stages for factor in (1.0, 3.0))
    assert one == other


def shared_windows(share: float, waits: float) -> Recording:
    """Two pipelines; steps of the one take so much longer, on a core and waiting for one, in those
    windows in which the other is at work, too."""
    random, lines = Random(3), list[Line]()
    for index in range(40):
        begin_s, beside = float(index), index % 2
        for number, name in ((2 * index, "p"), (2 * index + 1, "q"))[: 1 + beside]:
            lines.append(
                RequestRow(
                    number=number,
                    arrival_s=begin_s,
                    prompt=40,
                    output=20,
                    pipeline=name,
                    moves=0,
                    outcome="finished",
                    tokens=((begin_s + 0.5, 1), (begin_s + 1.0, 20)),
                )
            )
        steps, rows = random.randint(20, 60), random.randint(10, 200)
        for stage, costs in enumerate(TRUE.stages.values()):
            computed_s = (costs.step_s * steps + costs.prompt_row_s * rows) * (1 + share * beside)
            lines.append(
                WindowRow(
                    begin_s=begin_s,
                    end_s=begin_s + 1.0,
                    pipeline="p",
                    stage=stage,
                    steps=steps,
                    decoded=0,
                    prompt_rows=rows,
                    computed_s=computed_s,
                    stepped_s=computed_s * 2.0 * (1 + waits * beside),
                )
            )
    return Recording.of(Header(seconds=80.0, pipelines={"p": STAGES, "q": STAGES}), lines)


def test_what_another_pipeline_takes_of_the_machine_is_found_apart() -> None:
    told = shared_windows(0.3, 0.5)
    work = Work(told)
    assert (work.beside("p", 0.0, 1.0), work.beside("p", 1.0, 2.0)) == (0.0, 1.0)
    assert work.beside("q", 0.0, 1.0) == 0.0
    assert stretch(told).shared == pytest.approx(0.5)
    assert stretch(told).at("p", 0.5) == stretch(told).at("p", 1.5) == pytest.approx(2.0)
    profile, _ = fit(told, "x", BOUNDS)
    assert profile.shared == pytest.approx(0.3, rel=0.01)
    for kind, true in TRUE.stages.items():
        assert profile.stages[kind].step_s == pytest.approx(true.step_s, rel=0.01)
        assert profile.stages[kind].prompt_row_s == pytest.approx(true.prompt_row_s, rel=0.01)
    alone, _ = fit(shared_windows(0.0, 0.0), "x", BOUNDS)
    assert alone.shared == pytest.approx(0.0, abs=1e-3)


def test_what_pipelines_waited_for_each_other_is_fitted_by_the_first_half_alone() -> None:
    told = shared_windows(0.3, 0.5)
    told = replace(told, header=told.header.model_copy(update={"seconds": 40.0}))
    windows = tuple(
        one if one.end_s <= 20.0 else one.model_copy(update={"stepped_s": 3 * one.stepped_s})
        for one in told.windows
    )
    assert fit(replace(told, windows=windows), "x", BOUNDS) == fit(told, "x", BOUNDS)


def test_who_left_a_pipeline_is_at_work_where_it_was_then() -> None:
    work = Work(with_a_loss(3.5))
    assert work.beside("q", 3.0, 3.5) == 0.0
    assert work.beside("q", 3.5, 4.0) == 1.0
    assert work.beside("q", 4.0, 5.0) == 0.0
    assert Work(with_a_loss(100.0)).beside("q", 4.0, 5.0) == 1.0


def two_at_a_time(*, apart: bool) -> Recording:
    """Requests of two pipelines, at one time or one behind another."""
    rows = [
        RequestRow(
            number=number,
            arrival_s=100.0 * number * apart,
            prompt=100,
            output=60,
            pipeline=name,
            moves=0,
            outcome="finished",
            tokens=((100.0 * number * apart + 1.0, 1), (100.0 * number * apart + 2.0, 60)),
        )
        for number, name in enumerate("pq")
    ]
    return Recording.of(
        Header(seconds=200.0, pipelines={"p": STAGES, "q": STAGES}), list[Line](rows)
    )


def test_cycles_take_longer_while_another_pipeline_has_one() -> None:
    slowed = TRUE.model_copy(update={"shared": 0.5})

    def took_s(recording: Recording, profile: EngineProfile) -> list[float]:
        played = play(recording, profile)
        return [one.last_s - one.arrival_s - TRUE.first_s for _, one in sorted(played.items())]

    apart, alone = two_at_a_time(apart=True), took_s(two_at_a_time(apart=True), TRUE)
    assert took_s(apart, slowed) == pytest.approx(alone)
    assert took_s(two_at_a_time(apart=False), TRUE) == pytest.approx(alone)
    assert took_s(two_at_a_time(apart=False), slowed) == pytest.approx([1.5 * s for s in alone])


def test_a_few_windows_that_are_far_off_decide_nothing(recording: Recording) -> None:
    windows = tuple(
        one.model_copy(update={"stepped_s": 5 * one.stepped_s}) if index % 20 < 2 else one
        for index, one in enumerate(recording.windows)
    )
    profile, _ = fit(replace(recording, windows=windows), "x", BOUNDS)
    for kind, true in TRUE.stages.items():
        assert profile.stages[kind].prompt_row_s == pytest.approx(true.prompt_row_s, rel=0.05)


def a_while_apart(apart_s: float) -> Recording:
    """A request of each of two pipelines; the second one comes so much later."""
    rows = [
        RequestRow(
            number=number,
            arrival_s=number * apart_s,
            prompt=100,
            output=60,
            pipeline=name,
            moves=0,
            outcome="finished",
            tokens=((number * apart_s + 1.0, 1), (number * apart_s + 2.0, 60)),
        )
        for number, name in enumerate("pq")
    ]
    header = Header(seconds=200.0, pipelines={"p": STAGES, "q": STAGES})
    return Recording.of(header, list[Line](rows))


def test_a_request_is_longer_at_the_door_where_pipelines_are_at_work() -> None:
    waits = TRUE.model_copy(update={"first_beside_s": 0.005})

    def firsts_s(recording: Recording, profile: EngineProfile) -> list[float]:
        return [ttft_s(one) for _, one in sorted(play(recording, profile).items())]

    assert firsts_s(a_while_apart(100.0), waits) == firsts_s(a_while_apart(100.0), TRUE)
    (one_s, other_s), (early_s, late_s) = (firsts_s(a_while_apart(0.2), p) for p in (TRUE, waits))
    assert early_s == one_s
    assert late_s - other_s == pytest.approx(0.005)


def test_the_door_waits_for_what_else_the_machine_does() -> None:
    plain, slow = doors(TRUE), busy(doors(TRUE), 3.0)
    one, other = play(plain, TRUE)[0], play(slow, TRUE)[0]
    assert ttft_s(other) == pytest.approx(3 * ttft_s(one))


def test_rows_of_prompts_wait_longer_than_what_decodes() -> None:
    recording = a_while_apart(100.0)
    slow = play(recording, TRUE.model_copy(update={"reading": 3.0}))[0]
    plain = play(recording, TRUE)[0]
    row_s = sum(costs.prompt_row_s for costs in TRUE.stages.values())
    assert ttft_s(slow) - ttft_s(plain) == pytest.approx(2 * 100 * row_s)
    assert tpot_s(slow) == pytest.approx(tpot_s(plain))


def doors(profile: EngineProfile) -> Recording:
    """Two pipelines whose requests are played under a profile, with windows of its stages."""
    random, kinds = Random(5), profile.stages
    arrivals = sorted(random.uniform(0, 150) for _ in range(200))
    asked = [(at_s, random.randint(8, 300), random.randint(4, 40)) for at_s in arrivals]
    header = Header(seconds=160.0, pipelines={"p": STAGES, "q": STAGES})

    def told(times_s: list[tuple[float, float]]) -> Recording:
        lines: list[Line] = [
            RequestRow(
                number=number,
                arrival_s=at_s,
                prompt=prompt,
                output=output,
                pipeline="pq"[number % 2],
                moves=0,
                outcome="finished",
                tokens=((first_s, 1), (last_s, output)),
            )
            for number, ((at_s, prompt, output), (first_s, last_s)) in enumerate(
                zip(asked, times_s, strict=True)
            )
        ]
        for index in range(160):
            steps, rows = random.randint(20, 60), random.randint(10, 200)
            lines += [
                WindowRow(
                    begin_s=float(index),
                    end_s=index + 1.0,
                    pipeline="pq"[index % 2],
                    stage=stage,
                    steps=steps,
                    decoded=0,
                    prompt_rows=rows,
                    stepped_s=costs.step_s * steps + costs.prompt_row_s * rows,
                )
                for stage, costs in enumerate(kinds.values())
            ]
        return Recording.of(header, lines)

    played = play(told([(at_s + 1.0, at_s + 2.0) for at_s in arrivals]), profile)
    return told([(one.first_s or 0.0, one.last_s) for _, one in sorted(played.items())])


def test_what_a_request_waits_for_beside_steps_is_found_by_first_tokens() -> None:
    bare = {
        kind: costs.model_copy(update={"row_s": 0.0, "context_s": 0.0})
        for kind, costs in TRUE.stages.items()
    }
    true = TRUE.model_copy(
        update={"stages": bare, "first_s": 0.02, "first_beside_s": 0.016, "reading": 1.6}
    )
    found, _ = fit(doors(true), "x", BOUNDS)
    assert found.first_s == pytest.approx(true.first_s, rel=0.15)
    assert found.first_beside_s == pytest.approx(true.first_beside_s, rel=0.2)
    assert found.reading == pytest.approx(true.reading, rel=0.1)
    assert found.cycle_s == pytest.approx(true.cycle_s, rel=0.2)


def test_pipelines_at_work_when_a_request_comes_are_counted() -> None:
    work = Work(two_at_a_time(apart=False))
    assert [work.count(at_s) for at_s in (0.0, 1.0, 3.0)] == [0, 2, 0]
    assert Work(two_at_a_time(apart=True)).count(101.0) == 1
