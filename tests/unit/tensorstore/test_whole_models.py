"""Models whose tensors are kept whole: every one is there, in its layer, bit for bit."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import StageSpec
from services.engine.native.loader import NativeLoader, NativeOptions
from services.model.backends import backends_of
from services.tensorstore.client import StoredModel, open_store
from services.tensorstore.export import export
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import open_source
from tests.checkpoints import bits, write_checkpoint
from tests.foreign_models import (
    FOREIGN,
    QUANTISED,
    quantised_config,
    quantised_tensors,
    read_config,
    save_model,
    save_quantised,
)


def stored(source: Path, root: Path) -> StoredModel:
    with closing(open_source(source)) as checkpoint:
        import_checkpoint(checkpoint, DirectoryBackend(root), "m")
    return open_store(str(root)).model("m")


def held(model: StoredModel, start: int, end: int, degree: int = 1) -> dict[str, torch.Tensor]:
    """What the last rank of a stage is given."""
    with model.stage(LayerRange(start, end), degree, degree - 1) as stage:
        return {name: tensor.clone() for name, tensor in stage.tensors.items()}


@pytest.mark.parametrize("model_type", FOREIGN)
def test_each_stage_has_the_tensors_of_its_layers(tmp_path: Path, model_type: str) -> None:
    tensors = save_model(model_type, tmp_path / "source")
    model = stored(tmp_path / "source", tmp_path / "store")
    assert not model.manifest.is_tiled
    assert model.layers == 4
    assert backends_of(model.config, tiled=False).names == ("vllm",)
    stages = [held(model, 0, 1), held(model, 1, 3), held(model, 3, 4)]
    found = {name: tensor for stage in stages for name, tensor in stage.items()}
    assert found.keys() == tensors.keys()
    assert all(bits(found[name]).equal(bits(tensors[name])) for name in tensors)
    for name in tensors:
        number = re.search(r"\.(\d+)\.", name)
        holders = [index for index, stage in enumerate(stages) if name in stage]
        if number is not None:
            assert holders == [(0, 1, 1, 2)[int(number[1])]]
        elif "embed" in name and "embed_out" not in name:
            assert holders[0] == 0
        else:
            assert holders[-1] == 2 or "wte" in name or "wpe" in name


def test_the_last_stage_of_a_tied_model_has_the_embedding(tmp_path: Path) -> None:
    tensors = save_model("mixtral", tmp_path / "source", tie_word_embeddings=True)
    assert "lm_head.weight" not in tensors
    model = stored(tmp_path / "source", tmp_path / "store")
    assert "model.embed_tokens.weight" in held(model, 0, 1)
    assert "model.embed_tokens.weight" in held(model, 3, 4)
    assert "model.embed_tokens.weight" not in held(model, 1, 3)


def test_every_rank_has_whole_tensors_where_the_degree_divides_the_model(tmp_path: Path) -> None:
    save_model("mixtral", tmp_path / "source")
    model = stored(tmp_path / "source", tmp_path / "store")
    alone, second = held(model, 1, 2), held(model, 1, 2, degree=2)
    assert alone.keys() == second.keys()
    assert all(bits(alone[name]).equal(bits(second[name])) for name in alone)
    with pytest.raises(InvalidArgument, match="4 attention heads"):
        held(model, 1, 2, degree=3)


def test_sizes_are_those_of_the_layers(tmp_path: Path) -> None:
    tensors = save_model("glm4_moe", tmp_path / "source")
    model = stored(tmp_path / "source", tmp_path / "store")
    parts = model.manifest.part_bytes()
    assert sum(parts) == sum(tensor.nbytes for tensor in tensors.values())
    for layer in range(4):
        of_layer = [t.nbytes for name, t in tensors.items() if f"layers.{layer}." in name]
        assert parts[layer + 1] == sum(of_layer)
    assert parts[1] < parts[2] == parts[3]  # the first layer is dense


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_are_kept_with_their_scales(tmp_path: Path, kind: str) -> None:
    tensors = save_quantised(kind, tmp_path / "source")
    model = stored(tmp_path / "source", tmp_path / "store")
    served = backends_of(model.config, tiled=model.manifest.is_tiled)
    assert served.names == ("vllm",)
    assert "quantization_config" in served.reasons["native"]
    export(model, tmp_path / "out.safetensors", LayerRange(0, model.layers))
    exported = load_file(tmp_path / "out.safetensors")
    assert exported.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert exported[name].dtype == tensor.dtype
        assert exported[name].shape == tensor.shape
        assert bits(exported[name].reshape(-1)).equal(bits(tensor.reshape(-1)))


CHANGES = {
    "no scales": ("awq", "scales", None),
    "no zero points": ("gptq", "qzeros", None),
    "scales of other groups": ("awq", "scales", torch.zeros(3, 32, dtype=torch.float16)),
    "zero points of AWQ of another type": ("awq", "qzeros", torch.zeros(2, 4)),
    "zero points of another type": ("gptq", "qzeros", torch.zeros(2, 4)),
    "no scale of fp8": ("fp8", "weight_scale", None),
    "other blocks": ("fp8-block", "weight_scale_inv", torch.zeros(1, 2)),
    "no scale of packed": ("compressed-tensors", "weight_scale", None),
}


@pytest.mark.parametrize(("kind", "part", "value"), CHANGES.values(), ids=CHANGES.keys())
def test_a_part_of_a_quantised_matrix_that_is_wrong_is_named(
    tmp_path: Path, kind: str, part: str, value: torch.Tensor | None
) -> None:
    tensors, name = quantised_tensors(kind), f"model.layers.1.self_attn.q_proj.{part}"
    assert name in tensors
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    write_checkpoint(tmp_path / "source", quantised_config(kind), tensors)
    assert refused(tmp_path).field == name


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_matrix_of_another_shape_or_none_is_named(tmp_path: Path, kind: str) -> None:
    """What config.json describes, in whatever parts."""
    tensors = quantised_tensors(kind)
    parts = [name for name in tensors if "layers.2.mlp.up_proj" in name]
    for name in parts:
        del tensors[name]
    write_checkpoint(tmp_path / "source", quantised_config(kind), tensors)
    assert refused(tmp_path).field == "model.layers.2.mlp.up_proj.weight"


def refused(root: Path) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        stored(root / "source", root / "store")
    assert not (root / "store" / "models").exists() or not any(
        (root / "store" / "models").iterdir()
    )
    return caught.value


def rewritten(source: Path, change: Any) -> None:
    """One file instead of the shards, without an index."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in source.glob("*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    (source / "model.safetensors.index.json").unlink(missing_ok=True)
    change(tensors)
    save_file(tensors, source / "model.safetensors")


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    name = "model.layers.2.mlp.experts.3.up_proj.weight"
    save_model("qwen3_moe", tmp_path / "source")
    rewritten(tmp_path / "source", lambda tensors: tensors.pop(name))
    assert refused(tmp_path).field == name


def test_the_last_expert_of_a_layer_may_not_be_missing(tmp_path: Path) -> None:
    save_model("qwen3_moe", tmp_path / "source")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "layers.1.mlp.experts.3." in name]:
            del tensors[name]

    rewritten(tmp_path / "source", change)
    assert refused(tmp_path).field.startswith("model.layers.1.mlp.experts.3.")


def test_an_expert_of_another_shape_is_named(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.1.down_proj.weight"
    save_model("qwen3_moe", tmp_path / "source")
    rewritten(
        tmp_path / "source",
        lambda tensors: tensors.update({name: tensors[name].t().contiguous()}),
    )
    assert refused(tmp_path).field == name


@pytest.mark.parametrize("what", ["model.layers.3", "model.embed_tokens.weight", "lm_head.weight"])
def test_a_layer_an_embedding_or_a_head_that_is_missing_is_named(tmp_path: Path, what: str) -> None:
    save_model("mixtral", tmp_path / "source")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(what)]:
            del tensors[name]

    rewritten(tmp_path / "source", change)
    assert refused(tmp_path).field == what


def test_an_embedding_with_other_rows_is_named(tmp_path: Path) -> None:
    save_model("mixtral", tmp_path / "source")
    config = read_config(tmp_path / "source") | {"vocab_size": 80}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    found = refused(tmp_path)
    assert found.field == "model.embed_tokens.weight"
    assert "80 (vocab_size)" in found.message


def test_the_index_is_held_to(tmp_path: Path) -> None:
    save_model("mixtral", tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    files = index["weight_map"]
    name, other = (
        "model.norm.weight",
        next(f for f in files.values() if f != files["model.norm.weight"]),
    )
    path.write_text(json.dumps({**index, "weight_map": files | {name: other}}))
    assert name in refused(tmp_path).message
    path.write_text(json.dumps({**index, "weight_map": files | {"model.extra.weight": other}}))
    found = refused(tmp_path)
    assert found.field == "model.extra.weight"
    assert other in found.message
    path.write_text(json.dumps(index))
    tensors = load_file(tmp_path / "source" / other)
    again = load_file(tmp_path / "source" / files[name])
    save_file(tensors | {name: again[name]}, tmp_path / "source" / other)
    found = refused(tmp_path)
    assert name in found.message
    assert other in found.message


def test_a_node_that_cannot_compute_a_model_says_so(tmp_path: Path) -> None:
    save_model("mixtral", tmp_path / "source")
    model = stored(tmp_path / "source", tmp_path / "store")
    loader = NativeLoader(NativeOptions(str(tmp_path / "store"), "bf16", "cpu", 1, None))
    with pytest.raises(FailedPrecondition) as caught:
        loader.measure(ModelRef("m", model.digest), StageSpec(LayerRange(0, 2)))
    assert "native backend cannot serve" in caught.value.message
    assert "vllm can" in caught.value.message


_KINDS = (
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.bool, torch.uint8),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.float8_e4m3fn),
    *(torch.float8_e5m2, torch.float8_e8m0fnu, torch.uint16, torch.uint32, torch.uint64),
)


@settings(max_examples=25, deadline=None)
@given(
    added=st.lists(
        st.tuples(
            st.sampled_from(_KINDS),
            st.lists(st.integers(1, 5), max_size=4),
            st.sampled_from(["model.layers.2.extra", "model.extra", "model.layers.0.mlp.gate"]),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_tensors_of_any_type_and_rank_come_back(
    added: list[tuple[torch.dtype, list[int], str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("any")
    tensors = save_model("opt", root / "source")
    extra = {}
    for number, (dtype, shape, stem) in enumerate(added):
        count = dtype.itemsize
        for extent in shape:
            count *= extent
        raw = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8)
        extra[f"{stem}.t{number}"] = raw.view(dtype).reshape(shape)
    rewritten(root / "source", lambda held: held.update(extra))
    model = stored(root / "source", root / "store")
    found = {**held(model, 0, 2), **held(model, 2, 4)}
    assert found.keys() == tensors.keys() | extra.keys()
    for name, tensor in extra.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
