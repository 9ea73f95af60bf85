"""Whatever a source sends for a chunk, what is handed out is what was stored."""

from __future__ import annotations

import random
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.tensorstore_damage import load_mutant_chunks
from services.common.errors import DataLoss
from services.tensorstore.format.slices import Selection
from services.tensorstore.format.tile_check import TileCheck
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import open_source
from tests.checkpoints import make_config, make_tensors, write_checkpoint


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[DirectoryBackend, Selection]:
    root, config = tmp_path_factory.mktemp("chunks"), make_config(num_hidden_layers=1)
    source = write_checkpoint(root / "source", config, make_tensors(config))
    backend = DirectoryBackend(root / "store")
    with closing(open_source(source)) as checkpoint:
        done = import_checkpoint(checkpoint, backend, "m")
    return backend, Selection.of(done.digest, done.manifest, 0, 1)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_mutant_of_a_chunk_is_handed_out_or_crashes_the_cache(
    stored: tuple[DirectoryBackend, Selection], tmp_path_factory, seed: int
) -> None:
    backend, selection = stored
    with suppress(DataLoss):
        load_mutant_chunks(
            backend, tmp_path_factory.mktemp("cache"), selection, random.Random(seed)
        )


def test_bytes_behind_the_last_tile_are_data_loss(
    stored: tuple[DirectoryBackend, Selection],
) -> None:
    backend, selection = stored
    chunk = selection.manifest.chunks[0]
    data = Path(backend.path(chunk.digest)).read_bytes()
    check = TileCheck(chunk)
    check.update(data)
    with pytest.raises(DataLoss, match="too many"):
        check.update(b"x")
