"""What of a Hugging Face directory is opened before it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from services.common.errors import InvalidArgument
from services.tensorstore.sources import checkpoint, hf_checkpoint
from services.tensorstore.sources.hf_checkpoint import HfCheckpoint
from services.tensorstore.sources.source_file import read_file
from tests.checkpoints import make_config, make_tensors, write_checkpoint

LARGE = ("tokenizer.json", "model.safetensors")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened."""
    names: list[str] = []

    def recorded(path: Path, limit_bytes: int, within: Path | None = None) -> bytes:
        names.append(path.name)
        return read_file(path, limit_bytes, within)

    monkeypatch.setattr(hf_checkpoint, "read_file", recorded)
    return names


def _model(folder: Path) -> Path:
    config = make_config()
    write_checkpoint(folder, config, make_tensors(config))
    return folder


@pytest.mark.parametrize(
    ("file", "content", "field"),
    [
        ("config.json", {"hidden_act": "gelu"}, "hidden_act"),
        ("config.json", {"eos_token_id": "x"}, "eos_token_id"),
        ("config.json", {"tokenizer_class": "BertTokenizer"}, "tokenizer_class"),
        ("generation_config.json", {"eos_token_id": 1.5}, "eos_token_id"),
        ("generation_config.json", {"temperature": "x"}, "temperature"),
        ("tokenizer_config.json", {"padding_side": "middle"}, "padding_side"),
        ("tokenizer_config.json", {"eos_token": 7}, "eos_token"),
        ("tokenizer_config.json", {"added_tokens_decoder": None}, "added_tokens_decoder"),
        ("tokenizer_config.json", {"chat_template": "{% if %}"}, "chat_template"),
        ("special_tokens_map.json", {"eos_token": [1]}, "eos_token"),
        ("chat_template.jinja", "{{ x", "chat_template"),
        ("additional_chat_templates/default.jinja", "x", "additional_chat_templates"),
    ],
)
def test_what_a_small_file_tells_is_said_before_the_tokenizer_is_opened(
    tmp_path: Path, opened: list[str], file: str, content: Any, field: str
) -> None:
    path = _model(tmp_path) / file
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    else:
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(before | content))
    with pytest.raises(InvalidArgument) as refused:
        HfCheckpoint(tmp_path)
    assert refused.value.field == field
    assert "config.json" in opened
    assert not {*LARGE} & {*opened}


def test_a_foreign_tensor_is_told_before_the_tokenizer_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = make_tensors(make_config())
    tensors["model.layers.0.self_attn.q_proj.bias"] = tensors["model.norm.weight"].clone()
    write_checkpoint(tmp_path, make_config(), tensors)
    monkeypatch.setattr(checkpoint, "check_model", pytest.fail)
    with pytest.raises(InvalidArgument, match=r"q_proj\.bias"):
        checkpoint.check(HfCheckpoint(tmp_path))


def test_other_templates_must_be_text(tmp_path: Path) -> None:
    other = _model(tmp_path) / "additional_chat_templates" / "rag.jinja"
    other.parent.mkdir()
    other.write_bytes(b"\xff")
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(InvalidArgument, match=r"rag\.jinja: is not UTF-8"):
        HfCheckpoint(tmp_path)


def _phi3(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A Phi-3 of two layers, whose fused matrices are as its checkpoints have them, changed."""
    config = make_config(
        model_type="phi3",
        architectures=["Phi3ForCausalLM"],
        pad_token_id=None,
        num_hidden_layers=2,
    )
    tensors = make_tensors(config)
    for layer in ("model.layers.0", "model.layers.1"):
        attention = [tensors.pop(f"{layer}.self_attn.{part}_proj.weight") for part in "qkv"]
        tensors[f"{layer}.self_attn.qkv_proj.weight"] = torch.cat(attention)
        gate = [tensors.pop(f"{layer}.mlp.{part}_proj.weight") for part in ("gate", "up")]
        tensors[f"{layer}.mlp.gate_up_proj.weight"] = torch.cat(gate)
    change(tensors)
    write_checkpoint(folder, config, tensors)
    return folder


def test_a_fused_matrix_is_read_as_its_parts(tmp_path: Path) -> None:
    kept: dict[str, torch.Tensor] = {}
    with closing(HfCheckpoint(_phi3(tmp_path, lambda tensors: kept.update(tensors)))) as read:
        found = {}
        for part in "qkv":
            tensor = read.tensors[f"model.layers.1.self_attn.{part}_proj.weight"]
            data = bytearray(tensor.size_bytes)
            read.read_rows(tensor.name, 0, tensor.shape[0], memoryview(data))
            found[part] = bytes(data)
    whole = kept["model.layers.1.self_attn.qkv_proj.weight"].view(torch.uint8).numpy().tobytes()
    assert b"".join(found.values()) == whole
    assert len(found["q"]) == 4 * len(found["k"]) == 4 * len(found["v"])


FUSED = "model.layers.1.self_attn.qkv_proj.weight"
TWICE = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update({FUSED: t[FUSED][:-1].clone()}), f"{FUSED} has shape"),
        (lambda t: t.update({TWICE: torch.zeros(8, 32)}), f"{TWICE} occurs twice"),
    ],
)
def test_fused_rows_that_are_not_the_configs_are_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], said: str
) -> None:
    with pytest.raises(InvalidArgument, match=said.replace(".", r"\.")):
        HfCheckpoint(_phi3(tmp_path, change))
