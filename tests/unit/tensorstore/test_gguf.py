"""GGUF files: sound ones become a model, hostile ones a typed error."""

from __future__ import annotations

import math
import random
import struct
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidArgument, ShuntError
from services.tensorstore import importer
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.backend import read_manifest
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.gguf import checkpoint as gguf_checkpoint
from services.tensorstore.sources.gguf import set as gguf_set
from services.tensorstore.sources.gguf.checkpoint import GgufCheckpoint, round_to_bf16
from services.tensorstore.sources.gguf.file import read_header
from services.tensorstore.sources.opening import default_source
from tests.checkpoints import make_config, write_gguf
from tests.mutants import mutate_bytes, mutate_gguf


def make_header(*, tensors: int = 1, shape: tuple[int, ...] = (4, 2), offset: int = 0) -> bytes:
    key = b"general.architecture"
    out = b"GGUF" + struct.pack("<IQQ", 3, tensors, 1)
    out += struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 5) + b"llama"
    for number in range(tensors):
        name = f"t{number}".encode()
        out += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(shape))
        out += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", 0, offset)
    return out + bytes(-len(out) % 32)


SOUND = make_header() + bytes(32)


def test_a_sound_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(SOUND)
    found = read_header(path)
    assert found.tensors["t0"].shape == (2, 4)
    assert found.metadata == {"general.architecture": "llama"}


HOSTILE = {
    "empty": b"",
    "magic": b"GGML" + SOUND[4:],
    "version": b"GGUF" + struct.pack("<I", 99) + SOUND[8:],
    "tensor count": SOUND[:8] + struct.pack("<Q", 2**63) + SOUND[16:],
    "key count": SOUND[:16] + struct.pack("<Q", 2**63) + SOUND[24:],
    "string length": SOUND[:24] + struct.pack("<Q", 2**63) + SOUND[32:],
    "truncated": SOUND[:-1],
    "trailing": SOUND + b"x",
    "overlap": make_header(tensors=2) + bytes(32),
    "hole": make_header(offset=64) + bytes(96),
    "overflow": make_header(shape=(2**45, 2**45)) + bytes(32),
    "empty extent": make_header(shape=(0, 2)) + bytes(32),
    "rank": make_header(shape=(1,) * 5) + bytes(32),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_gets_a_typed_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(InvalidArgument):
        read_header(path)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_mutant_crashes_the_reader(tmp_path_factory, seed: int) -> None:
    source = random.Random(seed)
    path = tmp_path_factory.getbasetemp() / "mutant.gguf"
    path.write_bytes(mutate_bytes(SOUND, source))
    try:
        GgufCheckpoint(path)
    except ShuntError:
        return


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole model, tokenizer and all."""
    path = tmp_path_factory.mktemp("gguf") / "sound.gguf"
    config = make_config(num_hidden_layers=1, vocab_size=264, intermediate_size=64)
    return write_gguf(path, config).read_bytes()


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_mutant_of_a_whole_model_crashes_an_import(tmp_path_factory, sound, seed: int) -> None:
    chaos, path = random.Random(seed), tmp_path_factory.getbasetemp() / "model.gguf"
    path.write_bytes(mutate_gguf(sound, chaos))
    backend = DirectoryBackend(tmp_path_factory.getbasetemp() / "mutants")
    try:
        checkpoint = GgufCheckpoint(path)
    except ShuntError:
        return
    with closing(checkpoint), suppress(ShuntError):
        done = import_checkpoint(checkpoint, backend, "mutant")
        assert read_manifest(backend, done.digest)[1] == done.manifest


def test_the_unharmed_model_is_imported(tmp_path: Path, sound: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(sound)
    with closing(GgufCheckpoint(tmp_path / "x.gguf")) as checkpoint:
        done = import_checkpoint(checkpoint, DirectoryBackend(tmp_path / "store"), "x")
    assert done.manifest.tiling.heads == 8


@pytest.mark.parametrize("rows", [(0, 64), (0, 1), (7, 9), (5, 40), (63, 64)])
def test_rows_are_those_of_the_whole_whatever_heads_they_cut(
    tmp_path: Path, rows: tuple[int, int]
) -> None:
    path = write_gguf(
        tmp_path / "x.gguf",
        make_config(head_dim=8, vocab_size=264, hidden_size=64, intermediate_size=64),
    )
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    source = found["blk.1.attn_q.weight"]
    values = gguf.dequantize(source.data, source.tensor_type)  # 8 heads of [a0, b0, a1, b1, …]
    halves = values.reshape(8, 4, 2, 64).swapaxes(1, 2).reshape(64, 64)
    into = bytearray((rows[1] - rows[0]) * 128)
    with closing(GgufCheckpoint(path)) as checkpoint:
        checkpoint.read_rows("model.layers.1.self_attn.q_proj.weight", *rows, memoryview(into))
    assert bytes(into) == round_to_bf16(halves[slice(*rows)]).tobytes()


def test_the_rows_of_a_tensor_are_dequantised_about_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(head_dim=8, vocab_size=264, hidden_size=64, intermediate_size=64)
    done, dequantize = 0, gguf_checkpoint.dequantize

    def counted(blocks, kind):
        nonlocal done
        done += len(blocks)
        return dequantize(blocks, kind)

    monkeypatch.setattr(gguf_checkpoint, "dequantize", counted)
    monkeypatch.setattr(importer, "BUFFER_BYTES", 12 * 128)  # a head and a half
    with closing(GgufCheckpoint(write_gguf(tmp_path / "x.gguf", config))) as checkpoint:
        tensor = checkpoint.tensors["model.layers.1.self_attn.q_proj.weight"]
        for _ in importer.stored_bytes(checkpoint, tensor, 0):
            pass
    assert done < 2 * tensor.shape[0]


CHANGES = {
    "no epsilon": ("llama.attention.layer_norm_rms_epsilon", None),
    "epsilon a string": ("llama.attention.layer_norm_rms_epsilon", "x"),
    "epsilon infinite": ("llama.attention.layer_norm_rms_epsilon", math.inf),
    "epsilon true": ("llama.attention.layer_norm_rms_epsilon", True),
    "frequency a string": ("llama.rope.freq_base", "10000"),
    "frequency not a number": ("llama.rope.freq_base", math.nan),
    "frequency a list": ("llama.rope.freq_base", [1.0]),
    "key length a string": ("llama.attention.key_length", "64"),
    "heads that do not divide": ("llama.attention.head_count", 7),
    "tokens no list": ("tokenizer.ggml.tokens", 5),
}


@pytest.mark.parametrize(("key", "value"), CHANGES.values(), ids=CHANGES.keys())
def test_metadata_of_the_wrong_kind_get_a_typed_error(
    tmp_path: Path, sound: bytes, monkeypatch: pytest.MonkeyPatch, key: str, value: object
) -> None:
    (tmp_path / "x.gguf").write_bytes(sound)
    header = read_header(tmp_path / "x.gguf")
    del header.metadata[key]
    if value is not None:
        header.metadata[key] = value
    monkeypatch.setattr(gguf_set, "read_header", lambda path, within=None: header)
    with pytest.raises(InvalidArgument):
        GgufCheckpoint(tmp_path / "x.gguf")


def test_a_vector_of_blocks_is_refused(
    tmp_path: Path, sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.gguf").write_bytes(sound)
    header = read_header(tmp_path / "x.gguf")
    norm = header.tensors["output_norm.weight"]
    header.tensors[norm.name] = replace(norm, kind=gguf.GGMLQuantizationType.Q8_0)
    monkeypatch.setattr(gguf_set, "read_header", lambda path, within=None: header)
    with pytest.raises(InvalidArgument, match="vector"):
        GgufCheckpoint(tmp_path / "x.gguf")


def test_the_end_of_a_file_that_became_shorter_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(default_source().read_bytes()[:-4096])
    with pytest.raises(InvalidArgument, match="bytes"):
        GgufCheckpoint(path)


def test_rounding_is_to_nearest_even_and_keeps_nan() -> None:
    import torch

    values = np.array([0.0, -0.0, 1.00390625, 1.01171875, np.inf, -np.inf, 3.4e38], np.float32)
    ours = round_to_bf16(values).view(np.int16)
    assert ours.tolist() == torch.from_numpy(values).bfloat16().view(torch.int16).tolist()
    assert round_to_bf16(np.array([np.nan], np.float32))[0] == 0x7FC0
