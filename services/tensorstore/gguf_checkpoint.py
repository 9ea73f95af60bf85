"""A GGUF file as a checkpoint: dequantised to bf16, names and head order as Hugging Face's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

from services.common.errors import InvalidArgument
from services.tensorstore import gguf_file, gguf_tokenizer
from services.tensorstore.checkpoint import SourceTensor
from services.tensorstore.safetensors_file import read_exactly

_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_FAMILIES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "mistral": ("MistralForCausalLM", "mistral"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}
_STEP_BYTES = 8 << 20


class GgufCheckpoint:
    """Reads and dequantises by rows."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidArgument for a malformed file or another family of models."""
        header = gguf_file.read_header(path)
        self._metadata = header.metadata
        self.files: Mapping[str, bytes] = gguf_tokenizer.tokenizer_files(header.metadata)
        self._sources = {
            hf_name(name): tensor
            for name, tensor in header.tensors.items()
            if name != "rope_freqs.weight"  # the config says it
        }
        self.config: Mapping[str, Any] = self._config(header)
        self.tensors: Mapping[str, SourceTensor] = {
            name: SourceTensor(name, "BF16", tensor.shape) for name, tensor in self._sources.items()
        }
        # llama.cpp reorders the rows of Q and K for its own rotary embedding, in this family alone
        permuted = self.config["model_type"] in ("llama", "mistral")
        self._heads = {
            "self_attn.q_proj": self.config["num_attention_heads"] if permuted else 0,
            "self_attn.k_proj": self.config["num_key_value_heads"] if permuted else 0,
        }
        self._descriptor = os.open(path, os.O_RDONLY)

    def read_rows(self, name: str, first: int, last: int, into: memoryview) -> None:
        out = np.frombuffer(into, dtype=np.uint16)
        source = self._sources[name]
        heads = next((n for part, n in self._heads.items() if f".{part}." in name), 0)
        if heads:
            whole = self._bf16(source, 0, source.shape[0])
            head_rows = source.shape[0] // heads
            halves = whole.reshape(heads, head_rows // 2, 2, -1).swapaxes(1, 2)
            ordered = halves.reshape(source.shape[0], -1)
            out[:] = ordered[first:last].reshape(-1)
            return
        row_elements = len(out) // (last - first)
        step = max(1, _STEP_BYTES // (row_elements * 4))
        for row in range(first, last, step):
            stop = min(row + step, last)
            piece = self._bf16(source, row, stop)
            out[(row - first) * row_elements : (stop - first) * row_elements] = piece.reshape(-1)

    def close(self) -> None:
        os.close(self._descriptor)

    def _bf16(self, source: gguf_file.GgufTensor, first: int, last: int) -> Any:
        """Rows as bf16 bit patterns, [rows, columns]."""
        row_bytes = source.size_bytes // source.shape[0]
        raw = bytearray((last - first) * row_bytes)
        read_exactly(self._descriptor, source.start + first * row_bytes, memoryview(raw))
        _, block_bytes = GGML_QUANT_SIZES[source.kind]
        blocks = np.frombuffer(raw, dtype=np.uint8).reshape(last - first, -1)
        if source.kind.name in ("F32", "F16"):
            dtype = np.float32 if block_bytes == 4 else np.float16
            values = blocks.view(dtype).astype(np.float32)
        else:
            try:
                values = dequantize(blocks, source.kind)
            except (NotImplementedError, ValueError):
                raise InvalidArgument(
                    f"tensor type {source.kind.name} cannot be read", field="type"
                ) from None
        return round_to_bf16(values)

    def _config(self, header: gguf_file.GgufHeader) -> dict[str, Any]:
        metadata = header.metadata
        family = str(metadata.get("general.architecture"))
        if family not in _FAMILIES:
            raise InvalidArgument(
                f"architecture {ascii(family)[:40]} is not {', '.join(_FAMILIES)}",
                field="general.architecture",
            )
        architecture, model_type = _FAMILIES[family]
        heads = _metadata_int(metadata, f"{family}.attention.head_count")
        hidden = _metadata_int(metadata, f"{family}.embedding_length")
        embedding = self._sources.get("model.embed_tokens.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise InvalidArgument("token_embd.weight is missing", field="tensors")
        config: dict[str, Any] = {
            "architectures": [architecture],
            "model_type": model_type,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": _metadata_int(metadata, f"{family}.feed_forward_length"),
            "num_hidden_layers": _metadata_int(metadata, f"{family}.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": _metadata_int(metadata, f"{family}.attention.head_count_kv"),
            "head_dim": metadata.get(f"{family}.attention.key_length", hidden // heads),
            "vocab_size": embedding.shape[0],
            "max_position_embeddings": _metadata_int(metadata, f"{family}.context_length"),
            "rms_norm_eps": short_float(metadata[f"{family}.attention.layer_norm_rms_epsilon"]),
            "rope_theta": float(metadata.get(f"{family}.rope.freq_base", 10000.0)),
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": "lm_head.weight" not in self._sources,
            "torch_dtype": "bfloat16",
        }
        if "rope_freqs.weight" in header.tensors:
            raise InvalidArgument("GGUF files with scaled rope are not read", field="rope_freqs")
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            config[f"{ours}_token_id"] = gguf_tokenizer.token_id(metadata, theirs)
        return config


def hf_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor; raises InvalidArgument for an unknown one."""
    if name in _WHOLE:
        return _WHOLE[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[1].isdecimal() and parts[2] in _PARTS:
        return f"model.layers.{int(parts[1])}.{_PARTS[parts[2]]}.{parts[3]}"
    raise InvalidArgument(f"tensor {ascii(name)[:80]} is not known", field="name")


def round_to_bf16(values: Any) -> Any:
    """float32 to bf16 bit patterns (uint16), to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def short_float(value: float) -> float:
    """The shortest decimal that is this float32."""
    return float(str(np.float32(value)))


def _metadata_int(metadata: Mapping[str, Any], key: str) -> int:
    value = metadata.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidArgument(f"{key} must be a positive integer", field=key)
    return value
