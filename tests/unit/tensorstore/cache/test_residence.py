"""Nothing damaged is ever mapped; what was verified is not read again until it changes."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from services.common.errors import DataLoss, NotFound, ShuntError
from services.common.generation import LayerRange
from services.tensorstore import upkeep
from services.tensorstore.cache import residence
from tests.mutants import flip

FLIPS = 150


@pytest.mark.group(43)
def test_every_flipped_bit_is_found(tiny) -> None:
    source = random.Random(7)
    chunks = {tiny.backend.path(chunk.digest) for chunk in tiny.imported.manifest.chunks}
    files = sorted(tiny.files())
    with tiny.model().stage(LayerRange(0, 3)):
        pass
    for _ in range(FLIPS):
        path = source.choice(files)
        bit = source.randrange(path.stat().st_size * 8)
        flip(path, bit)
        if path in chunks:
            with pytest.raises(DataLoss, match=path.name), tiny.model().stage(LayerRange(0, 3)):
                pass
        else:
            with pytest.raises(DataLoss, match=path.name):
                tiny.model().tokenizer_files()
        assert upkeep.verify(tiny.backend, tiny.imported.digest) == [path.name]
        flip(path, bit)
    with tiny.model().stage(LayerRange(0, 3)):
        pass


def test_every_flipped_bit_of_a_manifest_is_found(tiny) -> None:
    path = tiny.backend.path(tiny.imported.digest)
    source = random.Random(8)
    for _ in range(FLIPS):
        bit = source.randrange(path.stat().st_size * 8)
        flip(path, bit)
        with pytest.raises(DataLoss):
            tiny.model()
        flip(path, bit)


def test_a_truncated_or_missing_chunk_is_named(tiny) -> None:
    path = tiny.backend.path(tiny.imported.manifest.chunks[1].digest)
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataLoss, match=path.name), tiny.model().stage(LayerRange(0, 3)):
        pass
    path.unlink()
    with pytest.raises(NotFound, match=path.name), tiny.model().stage(LayerRange(0, 3)):
        pass


def test_a_warm_load_reads_nothing_again(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiny.model().stage(LayerRange(0, 2)):
        pass
    read: list[int] = []
    before = residence.check_tile
    monkeypatch.setattr(residence, "check_tile", lambda *job: read.append(job[2]) or before(*job))
    with tiny.model().stage(LayerRange(0, 2)):
        pass
    assert read == []
    with tiny.model().stage(LayerRange(0, 3)):
        pass
    assert read != []


def test_what_was_verified_before_the_machine_booted_is_read_again(
    tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tiny.model().stage(LayerRange(0, 3)):
        pass
    read: list[int] = []
    before = residence.check_tile
    monkeypatch.setattr(residence, "check_tile", lambda *job: read.append(job[2]) or before(*job))
    monkeypatch.setattr(residence, "_boot", lambda: b"another")
    for _ in range(2):
        with tiny.model().stage(LayerRange(0, 3)):
            pass
    assert len(read) == sum(len(chunk.ends) for chunk in tiny.imported.manifest.chunks)


def test_nothing_is_recorded_while_a_change_might_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, state, ticks = tmp_path / "log", (1, 2, 5), [6, 5, 5]
    monkeypatch.setattr(residence, "_tick_ns", ticks.pop)
    residence.VerifiedLog(path).record({0: (state, 1)})
    assert ticks == []
    assert residence.VerifiedLog(path).good(0, state) == 1
    monkeypatch.setattr(residence, "_tick_ns", lambda: 5)
    residence.VerifiedLog(path).record({1: (state, 1)})
    assert residence.VerifiedLog(path).good(1, state) == 0


def test_a_log_that_others_write_or_begin_anew_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "verified" / "log"
    one, other = residence.VerifiedLog(path), residence.VerifiedLog(path)
    first, second = (1, 2, 3), (1, 2, 4)
    one.record({0: (first, 1), 1: (first, 1)})
    assert other.good(0, first) == 0
    other.refresh()
    assert other.good(0, first) == 1
    path.unlink()
    one.record({0: (second, 2)})
    other.refresh()
    assert other.good(0, second) == 2


def test_only_the_slice_is_read(tiny) -> None:
    seen = []
    with tiny.model().stage(LayerRange(0, 3), 8, 3, progress=lambda *pair: seen.append(pair)):
        pass
    model = tiny.model()
    assert seen[-1][0] == seen[-1][1]
    assert seen[-1][1] < 0.3 * model.manifest.size_bytes


def test_a_log_that_is_torn_or_foreign_only_costs_time(tiny) -> None:
    with tiny.model().stage(LayerRange(0, 3)):
        pass
    log = tiny.root / "verified" / tiny.imported.digest
    whole = log.read_bytes()
    for damaged in (b"", whole[:-20], b"\xff\xfe", b"1 2\n" * 5, b"0 x y z w\n" + whole):
        log.write_bytes(damaged)
        with tiny.model().stage(LayerRange(0, 3)) as stage:
            assert len(stage.tensors) == len(tiny.tensors)


def test_a_store_that_cannot_be_written_to_still_serves(tiny) -> None:
    (tiny.root / "verified").write_text("in the way")
    with tiny.model().stage(LayerRange(0, 3)) as stage:
        assert stage.tensors


def test_a_pointer_with_anything_else_in_it_is_data_loss(tiny) -> None:
    for text in (b"", b"../../x", b"\xff" * 64, b"0" * 63):
        (tiny.root / "models" / "tiny").write_bytes(text)
        with pytest.raises(DataLoss):
            tiny.model()


def test_a_store_without_the_model_says_what_it_has(tiny) -> None:
    shutil.copy(tiny.root / "models" / "tiny", tiny.root / "models" / "other")
    tiny.backend.withdraw("tiny")
    with pytest.raises(ShuntError, match="other"):
        tiny.model()
