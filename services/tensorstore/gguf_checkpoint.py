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
from services.tensorstore.source_file import open_file, read_exactly

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
_STEP_BYTES = 1 << 20  # as float32; rounding holds a few times that


class GgufCheckpoint:
    """Reads and dequantises by rows."""

    def __init__(self, path: Path, within: Path | None = None) -> None:
        """Raises InvalidArgument for a malformed file, another family of models, or a link that
        leads out of the directory given."""
        header = gguf_file.read_header(path, within)
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
        for name, tensor in self._sources.items():
            _check_rows(name, tensor, self._heads_of(name))
        self._descriptor = open_file(path, within)

    def read_rows(self, name: str, first: int, last: int, into: memoryview) -> None:
        source = self._sources[name]
        out = np.frombuffer(into, dtype=np.uint16).reshape(last - first, -1)
        heads = self._heads_of(name)
        head_rows = source.shape[0] // heads if heads else 0
        step = head_rows or max(1, _STEP_BYTES // (out.shape[1] * 4))
        row = first
        while row < last:
            if heads:  # whole ones, for their rows come in another order
                start = row // step * step
                rows = _reordered(self._bf16(source, start, start + step))
            else:
                start, rows = row, self._bf16(source, row, min(row + step, last))
            stop = min(start + len(rows), last)
            out[row - first : stop - first] = rows[row - start : stop - start]
            row = stop

    def close(self) -> None:
        os.close(self._descriptor)

    def _heads_of(self, name: str) -> int:
        """Into how many heads a tensor's rows are reordered; 0 for those that are not."""
        return next((n for part, n in self._heads.items() if f".{part}." in name), 0)

    def _bf16(self, source: gguf_file.GgufTensor, first: int, last: int) -> Any:
        """Rows as bf16 bit patterns, [rows, columns]."""
        row_bytes = source.size_bytes // source.shape[0]
        raw = bytearray((last - first) * row_bytes)
        read_exactly(self._descriptor, source.start + first * row_bytes, memoryview(raw))
        _, block_bytes = GGML_QUANT_SIZES[source.kind]
        blocks = np.frombuffer(raw, dtype=np.uint8).reshape(last - first, -1)
        with np.errstate(invalid="ignore", over="ignore"):  # what is not a number stays so
            if source.kind.name in ("F32", "F16"):
                dtype = np.float32 if block_bytes == 4 else np.float16
                return round_to_bf16(blocks.view(dtype).astype(np.float32))
            try:
                return round_to_bf16(dequantize(blocks, source.kind))
            except (NotImplementedError, ValueError):
                raise InvalidArgument(
                    f"tensor type {source.kind.name} cannot be read", field="type"
                ) from None

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
            "head_dim": _metadata_int(
                metadata, f"{family}.attention.key_length", max(1, hidden // heads)
            ),
            "vocab_size": embedding.shape[0],
            "max_position_embeddings": _metadata_int(metadata, f"{family}.context_length"),
            "rms_norm_eps": short_float(
                _metadata_float(metadata, f"{family}.attention.layer_norm_rms_epsilon")
            ),
            "rope_theta": _metadata_float(metadata, f"{family}.rope.freq_base", 10000.0),
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
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _PARTS:
        return f"model.layers.{parts[1]}.{_PARTS[parts[2]]}.{parts[3]}"  # checked by `place`
    raise InvalidArgument(f"tensor {ascii(name)[:80]} is not known", field="name")


def round_to_bf16(values: Any) -> Any:
    """float32 to bf16 bit patterns (uint16), to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def short_float(value: float) -> float:
    """The shortest decimal that is this float32."""
    return float(str(np.float32(value)))


def _check_rows(name: str, tensor: gguf_file.GgufTensor, heads: int) -> None:
    """Rows are read one by one, so each must be whole blocks, and each head two halves."""
    block, _ = GGML_QUANT_SIZES[tensor.kind]
    if len(tensor.shape) == 1 and block > 1:
        raise InvalidArgument(f"{name} is a vector of type {tensor.kind.name}", field="type")
    if heads and tensor.shape[0] % (2 * heads):
        raise InvalidArgument(
            f"{name} of shape {list(tensor.shape)} is not made of {heads} heads", field="shape"
        )


def _reordered(rows: Any) -> Any:
    """One head's rows in Hugging Face's order: [a0, b0, a1, b1, …] to [a0, a1, …, b0, b1, …]."""
    return rows.reshape(len(rows) // 2, 2, -1).swapaxes(0, 1).reshape(len(rows), -1)


def _metadata_int(metadata: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidArgument(f"{key} must be a positive integer", field=key)
    return value


def _metadata_float(metadata: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = metadata.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
        raise InvalidArgument(f"{key} must be a positive number", field=key)
    return float(value)
