"""What is wrong with a source is said so that its owner knows what to do."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from services.common.errors import InvalidArgument
from services.tensorstore.sources.checkpoint import check
from services.tensorstore.sources.opening import open_source
from tests.checkpoints import make_config, make_tensors, write_checkpoint

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4431388448\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    config = make_config()
    return write_checkpoint(tmp_path / "model", config, make_tensors(config))


def message(path: Path) -> str:
    with pytest.raises(InvalidArgument) as caught:
        check(open_source(path))
    return caught.value.message


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model-00001-of-00001.safetensors"]
)
def test_a_git_lfs_pointer_is_named_as_one(directory: Path, name: str) -> None:
    (directory / name).write_text(POINTER)
    found = message(directory)
    assert found.startswith(f"{name} is a Git LFS pointer")
    assert "git lfs pull" in found


def test_a_gguf_file_that_is_a_pointer_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text(POINTER)
    assert message(tmp_path / "m.gguf").startswith("m.gguf is a Git LFS pointer")
    assert message(tmp_path).startswith("m.gguf is a Git LFS pointer")


GGUF = {
    "empty": (b"", "the file is empty"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "version 1": (b"GGUF" + struct.pack("<III", 1, 0, 0), "GGUF version 1 is not 2 or 3"),
    "GGML": (b"ggjt" + bytes(20), "not a GGUF file"),
}


@pytest.mark.parametrize(("data", "wanted"), GGUF.values(), ids=GGUF.keys())
def test_a_gguf_file_of_another_kind_is_named(tmp_path: Path, data: bytes, wanted: str) -> None:
    (tmp_path / "m.gguf").write_bytes(data)
    found = message(tmp_path / "m.gguf")
    assert found.startswith("m.gguf: ")
    assert wanted in found


def test_an_empty_safetensors_file_is_said_to_be_empty(directory: Path) -> None:
    (directory / "model-00001-of-00001.safetensors").write_bytes(b"")
    assert message(directory) == "model-00001-of-00001.safetensors: the file is empty"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"a": NaN}', b"\xff\xfe{}"])
def test_a_config_that_cannot_be_read_is_named(directory: Path, data: bytes) -> None:
    (directory / "config.json").write_bytes(data)
    assert message(directory).startswith("config.json: ")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("qweight", torch.int32), ("qzeros", torch.int32), ("weight", torch.uint8)],
)
def test_packed_integers_are_named_as_quantised_weights(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(make_config()))
    tensor = f"model.layers.0.self_attn.q_proj.{name}"
    save_file({tensor: torch.zeros(4, 4, dtype=dtype)}, tmp_path / "model.safetensors")
    found = message(tmp_path)
    assert tensor in found
    assert "quantised" in found
    assert "GPTQ" in found


def test_another_element_type_is_named_with_those_that_are_kept(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(make_config()))
    save_file({"x": torch.zeros(4, dtype=torch.complex64)}, tmp_path / "model.safetensors")
    assert "dtype 'C64' of x is not one of BF16, F16" in message(tmp_path)


@pytest.mark.parametrize(
    ("others", "own", "taken"),
    [
        (("default",), True, False),
        (("tool_use",), False, False),
        (("tool_use",), True, True),
        ((), False, True),
    ],
)
def test_a_default_template_among_other_templates_is_refused(
    directory: Path, others: tuple[str, ...], own: bool, taken: bool
) -> None:
    (directory / "additional_chat_templates").mkdir()
    for name in others:
        (directory / "additional_chat_templates" / f"{name}.jinja").write_text("{{ 1 }}")
    if own:
        (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    if taken:
        open_source(directory).close()
    else:
        assert message(directory).startswith("additional_chat_templates")
