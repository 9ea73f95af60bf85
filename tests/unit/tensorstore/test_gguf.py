"""GGUF files: sound ones become a model, hostile ones a typed error."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidArgument, ShuntError
from services.tensorstore.gguf_checkpoint import GgufCheckpoint, hf_name, round_to_bf16
from services.tensorstore.gguf_file import read_header
from services.tensorstore.sources import default_source
from tests.mutants import mutate_bytes


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


def test_the_end_of_a_file_that_became_shorter_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(default_source().read_bytes()[:-4096])
    with pytest.raises(InvalidArgument, match="bytes"):
        GgufCheckpoint(path)


def test_unknown_tensors_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="ffn_gate_exps"):
        hf_name("blk.0.ffn_gate_exps.weight")


def test_rounding_is_to_nearest_even_and_keeps_nan() -> None:
    import torch

    values = np.array([0.0, -0.0, 1.00390625, 1.01171875, np.inf, -np.inf, 3.4e38], np.float32)
    ours = round_to_bf16(values).view(np.int16)
    assert ours.tolist() == torch.from_numpy(values).bfloat16().view(torch.int16).tolist()
    assert round_to_bf16(np.array([np.nan], np.float32))[0] == 0x7FC0
