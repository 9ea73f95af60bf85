"""Tiny GGUF models, made of what a test says of them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXT = (
    "the capital of France is Paris and the river through it is the Seine; they'll say it's"
    " 1984 or 2001, naïve façade, 日本語 and 🙂, def f(x): return x ** 2"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CONTROL, _USER_DEFINED, _BYTE, _UNKNOWN, _NORMAL = 3, 4, 6, 2, 1


@dataclass(frozen=True)
class GgufModel:
    """Metadata by key (a missing value is a key to leave out) and tensors by name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray[Any, Any]]

    def with_metadata(self, **changes: Any) -> GgufModel:
        """Keys with `__` for their dots."""
        named = {key.replace("__", "."): value for key, value in changes.items()}
        return self.changed(named)

    def changed(self, metadata: Mapping[str, Any]) -> GgufModel:
        """With other metadata; None leaves a key out."""
        return replace(self, metadata={**self.metadata, **metadata})

    def with_tensors(self, **changes: np.ndarray[Any, Any] | None) -> GgufModel:
        """With other tensors, `__` for dots; None leaves one out."""
        named = {key.replace("__", "."): value for key, value in changes.items()}
        tensors = {**self.tensors, **{k: v for k, v in named.items() if v is not None}}
        left = {
            name: value for name, value in tensors.items() if named.get(name, value) is not None
        }
        return replace(self, tensors=left)

    def write(self, path: Path) -> Path:
        """As one file, tensors in F32."""
        writer = gguf.GGUFWriter(path, "")
        writer.kv_data[0].clear()
        for key, value in self.metadata.items():
            if value is not None:
                _add(writer, key, value)
        for name, tensor in self.tensors.items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def write_parts(self, directory: Path, count: int, stem: str = "m") -> list[Path]:
        """As a split file: metadata in the first part, tensors dealt out in their order."""
        names = list(self.tensors)
        share = -(-len(names) // count)
        paths = []
        for number in range(count):
            own = {name: self.tensors[name] for name in names[number * share :][:share]}
            split = {
                "split.no": np.uint16(number),
                "split.count": np.uint16(count),
                "split.tensors.count": np.int32(len(names)),
            }
            metadata = split if number else {**self.metadata, **split}
            path = directory / f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"
            paths.append(GgufModel(metadata, own).write(path))
        return paths


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds: list[tuple[type, GGUFValueType]] = [
        (bool, GGUFValueType.BOOL),
        (np.uint16, GGUFValueType.UINT16),
        (np.int32, GGUFValueType.INT32),
        (
            int,
            GGUFValueType.UINT32 if isinstance(value, int) and value >= 0 else GGUFValueType.INT32,
        ),
        (float, GGUFValueType.FLOAT32),
        (str, GGUFValueType.STRING),
        (list, GGUFValueType.ARRAY),
    ]
    kind = next(kind for python, kind in kinds if isinstance(value, python))
    if kind is GGUFValueType.ARRAY and not value:
        return  # the writer knows no empty array
    writer.add_key_value(key, value.item() if isinstance(value, np.generic) else value, kind)


def byte_level(pre: str) -> dict[str, Any]:
    """A byte-level vocabulary with a few merges, and a word that no merge makes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=330, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    trained.train_from_iterator([TEXT] * 3, trainer)
    model = json.loads(trained.to_str())["model"]
    words = [*sorted(model["vocab"], key=model["vocab"].__getitem__), "Ġzebra"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*words, *SPECIAL],
        "tokenizer.ggml.token_type": [_NORMAL] * len(words) + [_CONTROL] * len(SPECIAL),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": len(words),
        "tokenizer.ggml.eos_token_id": len(words) + 2,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def sentencepiece(seed: int = 0) -> dict[str, Any]:
    """A SentencePiece vocabulary: bytes, characters, and pieces whose scores are often equal."""
    chaos = random.Random(seed)
    words = ["\u2581" + word for word in TEXT.split()]
    pieces = {word[:end] for word in words for end in range(1, len(word) + 1)}
    pieces |= {word[start:] for word in words for start in range(len(word))}
    pieces |= set("".join(words))
    ordered = sorted(pieces)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *ordered]
    scores = [0.0] * 259 + [-float(chaos.randrange(40)) for _ in ordered]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * len(ordered)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def gemma_pieces() -> dict[str, Any]:
    """As converters write a Gemma's: pieces in the order of their merges, scores that say nothing
    of it, runs of spaces and lines spelled out as user-defined tokens."""
    given = sentencepiece()
    pieces = sorted(
        set(given["tokenizer.ggml.tokens"][259:]), key=lambda piece: (len(piece), piece)
    )
    head = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    runs = ["\n", "\n\n", "\n\n\n", "  ", "   ", "    "]
    data = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*head, *runs, *data, *pieces]
    chaos = random.Random(3)
    kinds = [_CONTROL] * 6 + [_USER_DEFINED] * 6 + [_BYTE] * 256 + [_NORMAL] * len(pieces)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-1000.0 * chaos.random() for _ in tokens],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }


def model(
    family: str = "llama",
    vocabulary: Mapping[str, Any] | None = None,
    *,
    layers: int = 2,
    tied: bool = False,
    seed: int = 0,
) -> GgufModel:
    """Random weights, small enough for logits to be compared."""
    vocabulary = byte_level("smollm") if vocabulary is None else vocabulary
    hidden, rows, heads, kv_heads, head_dim = 64, 96, 4, 2, 16
    words = len(vocabulary["tokenizer.ggml.tokens"])
    metadata = {
        "general.architecture": family,
        "general.name": "tiny",
        f"{family}.context_length": 256,
        f"{family}.embedding_length": hidden,
        f"{family}.block_count": layers,
        f"{family}.feed_forward_length": rows,
        f"{family}.attention.head_count": heads,
        f"{family}.attention.head_count_kv": kv_heads,
        f"{family}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{family}.rope.freq_base": 10000.0,
        **vocabulary,
    }
    if family in ("qwen3", "gemma2", "gemma3"):
        metadata[f"{family}.attention.key_length"] = head_dim
        metadata[f"{family}.attention.value_length"] = head_dim
    else:
        metadata[f"{family}.rope.dimension_count"] = head_dim
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (words, hidden)}
    for layer in range(layers):
        parts: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (hidden,),
            "attn_q.weight": (heads * head_dim, hidden),
            "attn_k.weight": (kv_heads * head_dim, hidden),
            "attn_v.weight": (kv_heads * head_dim, hidden),
            "attn_output.weight": (hidden, heads * head_dim),
            "ffn_norm.weight": (hidden,),
            "ffn_gate.weight": (rows, hidden),
            "ffn_up.weight": (rows, hidden),
            "ffn_down.weight": (hidden, rows),
        }
        if family == "qwen2":
            for part in ("attn_q", "attn_k", "attn_v"):
                parts[f"{part}.bias"] = parts[f"{part}.weight"][:1]
        if family in ("gemma2", "gemma3"):
            parts |= {"post_attention_norm.weight": (hidden,), "post_ffw_norm.weight": (hidden,)}
        if family in ("qwen3", "gemma3"):
            parts |= {"attn_q_norm.weight": (head_dim,), "attn_k_norm.weight": (head_dim,)}
        shapes |= {f"blk.{layer}.{part}": shape for part, shape in parts.items()}
    shapes["output_norm.weight"] = (hidden,)
    if not tied:
        shapes["output.weight"] = (words, hidden)
    chaos = np.random.default_rng(seed)
    tensors = {name: _values(name, shape, chaos) for name, shape in shapes.items()}
    if family in ("gemma2", "gemma3"):  # its own weights count from 1, those of the file from 0
        norms = [name for name in tensors if name.endswith("norm.weight")]
        tensors |= {name: _in_bf16(tensors[name] - 1) + 1 for name in norms}
    return GgufModel(metadata, tensors)


def _values(name: str, shape: tuple[int, ...], chaos: np.random.Generator) -> np.ndarray[Any, Any]:
    """Values that bf16 holds exactly, so that a comparison of logits sees arithmetic alone."""
    scale = 0.2 if len(shape) == 2 else 0.5
    values = chaos.standard_normal(shape, np.float32) * scale + name.endswith("norm.weight")
    return _in_bf16(values.astype(np.float32))


def _in_bf16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Cut to what bf16 holds; float32."""
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
