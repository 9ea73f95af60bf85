"""Every slice of a stored model is the slice of the original tensors, bit for bit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidArgument
from services.common.generation import LayerRange
from services.tensorstore.client import StoredModel, open_store
from services.tensorstore.format.slices import Selection
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import open_source
from tests.checkpoints import (
    DTYPES,
    bits,
    expected_slice,
    make_config,
    make_tensors,
    write_checkpoint,
)


def expected_names(model: StoredModel, start: int, end: int) -> set[str]:
    layers = model.layers
    names = {
        name
        for name in model.manifest.by_name
        if name.startswith("model.layers.") and start <= int(name.split(".")[2]) < end
    }
    if start == 0:
        names.add("model.embed_tokens.weight")
    if end == layers:
        names |= {"model.norm.weight"}
        names.add("model.embed_tokens.weight" if model.manifest.tied else "lm_head.weight")
    return names


def assert_same(
    model: StoredModel,
    tensors: dict[str, torch.Tensor],
    start: int,
    end: int,
    degree: int,
    rank: int,
) -> None:
    with model.stage(LayerRange(start, end), degree, rank) as stage:
        assert set(stage.tensors) == expected_names(model, start, end)
        for name, tensor in stage.tensors.items():
            wanted = expected_slice(model.config, name, tensors[name], degree, rank)
            assert tensor.shape == wanted.shape, name
            assert tensor.dtype == wanted.dtype, name
            assert torch.equal(bits(tensor), bits(wanted)), name


models = st.fixed_dictionaries(
    {
        "model_type": st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "num_hidden_layers": st.integers(1, 4),
        "num_key_value_heads": st.sampled_from([1, 2, 4, 8]),
        "head_dim": st.sampled_from([2, 4, 6]),
        "intermediate_size": st.sampled_from([8, 24, 80]),
        "vocab_size": st.sampled_from([8, 64, 104]),
        "hidden_size": st.sampled_from([8, 24, 32]),
    }
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=models, dtype=st.sampled_from(DTYPES), shards=st.integers(1, 3), data=st.data())
def test_every_slice_equals_the_slice_of_the_original(
    changes: dict[str, object], dtype: torch.dtype, shards: int, data: st.DataObject
) -> None:
    config = make_config(**changes, architectures=None)
    tensors = make_tensors(config, dtype, seed=data.draw(st.integers(0, 99)))
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        checkpoint = open_source(write_checkpoint(root / "source", config, tensors, shards))
        import_checkpoint(checkpoint, DirectoryBackend(root / "store"), "m")
        checkpoint.close()
        model = open_store(str(root / "store")).model("m")
        start = data.draw(st.integers(0, model.layers - 1))
        end = data.draw(st.integers(start + 1, model.layers))
        for degree in (1, 2, 4, 8):
            for rank in range(degree):
                assert_same(model, tensors, start, end, degree, rank)


@pytest.mark.parametrize("degree", [1, 3])
def test_smollm2_splits_over_its_nine_heads(smollm2: StoredModel, degree: int) -> None:
    with smollm2.stage(LayerRange(0, 30)) as whole:
        tensors = {name: tensor.clone() for name, tensor in whole.tensors.items()}
    for rank in range(degree):
        for start, end in ((0, 30), (0, 18), (18, 30), (7, 8)):
            assert_same(smollm2, tensors, start, end, degree, rank)


@pytest.mark.parametrize("degree", [2, 4, 8])
def test_smollm2_refuses_degrees_that_do_not_divide(smollm2: StoredModel, degree: int) -> None:
    with (
        pytest.raises(InvalidArgument, match="9 attention heads"),
        smollm2.stage(LayerRange(0, 1), degree, 0),
    ):
        pass


@pytest.mark.parametrize(
    ("layers", "degree", "rank"),
    [
        ((0, 0), 1, 0),
        ((2, 1), 1, 0),
        ((0, 4), 1, 0),
        ((0, 1), 2, 2),
        ((0, 1), 0, 0),
        ((0, 1), 9, 0),
    ],
)
def test_a_slice_that_does_not_exist_is_refused(
    tiny, layers: tuple[int, int], degree: int, rank: int
) -> None:
    with (
        pytest.raises(InvalidArgument),
        tiny.model().stage(LayerRange(*layers), degree, rank),
    ):
        pass


def needed_bytes(selections: Iterable[Selection]) -> int:
    return sum(piece.size_bytes for one in selections for piece in one.pieces)


@pytest.mark.parametrize("degree", [1, 2, 4, 8])
def test_what_is_fetched_is_the_slice_and_the_ranks_add_up_to_the_model(tiny, degree: int) -> None:
    manifest, digest = tiny.imported.manifest, tiny.imported.digest
    ranks = [Selection.of(digest, manifest, 0, 3, degree, rank) for rank in range(degree)]
    for one in ranks:
        padding = 63 * len(one.pieces)
        assert needed_bytes([one]) <= one.size_bytes <= needed_bytes([one]) + padding
    split = [t for t in manifest.tensors if t.unit not in (None, "kv_heads")]
    assert sum(
        piece.size_bytes for one in ranks for piece in one.pieces if piece.tensor in split
    ) == sum(tensor.size_bytes for tensor in split)


def test_a_whole_smollm2_is_stored_once(smollm2: StoredModel, smollm2_store: Path) -> None:
    stored = sum(f.stat().st_size for f in smollm2_store.rglob("objects/??/*"))
    weights = sum(tensor.size_bytes for tensor in smollm2.manifest.tensors)
    files = sum(file.size_bytes for file in smollm2.manifest.files.values())
    assert stored <= 1.01 * (weights + files) + 65536
