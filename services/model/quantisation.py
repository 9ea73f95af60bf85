"""Quantised weights: what config.json says of them, and whether every part of a matrix is there.

A matrix of a quantised model is several tensors that mean something only together: packed numbers
or eight-bit floats, and the scales and zero points that make weights of them. The layouts are those
of AutoAWQ, AutoGPTQ (GPTQModel), fp8 with scales by matrix, row or block, compressed-tensors and
MXFP4. Parts that a layout leaves open (`g_idx`, `input_scale`) are kept as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from services.common.errors import InvalidArgument
from services.model.fields import refuse

QUANTISATION = "quantization_config"
_WORD_BITS = 32
_BITS = {"awq": (4,), "gptq": (2, 3, 4, 8)}
_FP8 = ("F8_E4M3", "F8_E5M2")
_NAME_CHARS = 120

Shape = tuple[int, ...]


class StoredTensor(Protocol):
    """A tensor of a checkpoint."""

    @property
    def shape(self) -> Shape: ...

    @property
    def dtype(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How a model's weights were quantised; no method where they were not."""

    method: str = ""
    bits: int = 0
    group_size: int = 0
    """Input columns that share a scale; -1: all of a matrix."""
    block: tuple[int, int] | None = None
    """Rows and columns that share a scale, of fp8 with scales by block."""


def parse_quantisation(config: Mapping[str, Any]) -> Quantisation:
    """Raises InvalidArgument naming the field that is missing or absurd."""
    given = config.get(QUANTISATION)
    if given is None:
        return Quantisation()
    if not isinstance(given, dict):
        raise refuse(QUANTISATION, "must be an object")
    method = given.get("quant_method")
    if not isinstance(method, str) or not method:
        raise refuse(f"{QUANTISATION}.quant_method", "must be a name")
    if method in _BITS:
        bits, group = given.get("bits"), given.get("group_size")
        if type(bits) is not int or bits not in _BITS[method]:
            allowed = ", ".join(map(str, _BITS[method]))
            raise refuse(f"{QUANTISATION}.bits", f"must be one of {allowed}")
        if type(group) is not int or not (group == -1 or 0 < group <= 1 << 16):
            raise refuse(f"{QUANTISATION}.group_size", "must be -1 or a positive integer")
        if method == "awq" and given.get("version", "gemm") != "gemm":
            raise refuse(f"{QUANTISATION}.version", "must be gemm: others are packed otherwise")
        return Quantisation(method, bits, group)
    return Quantisation(method, block=_block(given) if method == "fp8" else None)


def _block(given: Mapping[str, Any]) -> tuple[int, int] | None:
    block = given.get("weight_block_size")
    if block is None:
        return None
    if (
        not isinstance(block, list)
        or len(block) != 2
        or any(type(size) is not int or not 0 < size <= 1 << 16 for size in block)
    ):
        raise refuse(f"{QUANTISATION}.weight_block_size", "must be two positive integers")
    return block[0], block[1]


def check_parts(how: Quantisation, tensors: Mapping[str, StoredTensor]) -> dict[str, Shape]:
    """The original shapes of quantised matrices, by the name that their weight would have; 0 for an
    extent that the parts do not tell.

    Raises InvalidArgument that names a part which is missing, of another shape or type, or belongs
    to nothing.
    """
    check = _CHECKS.get(how.method, _check_scaled)
    found: dict[str, Shape] = {}
    for name, tensor in tensors.items():
        for ending, mains in _MAINS.items():
            if name.endswith(ending):
                _check_belongs(name, ending, mains, tensors)
        check(how, name, tensor, tensors, found)
    return found


_MAINS: Mapping[str, tuple[str, ...]] = {
    ".scales": (".qweight",),
    ".qzeros": (".qweight",),
    ".g_idx": (".qweight",),
    ".weight_scale": (".weight", ".weight_packed"),
    ".weight_scale_inv": (".weight",),
    ".weight_zero_point": (".weight", ".weight_packed"),
    "_proj_scales": ("_proj_blocks",),
}
"""Parts of a matrix, and what of it must be there for them to mean something."""


def _check_belongs(
    name: str, ending: str, mains: tuple[str, ...], tensors: Mapping[str, StoredTensor]
) -> None:
    stem = name.removesuffix(ending)
    if not any(stem + main in tensors for main in mains):
        raise refuse_tensor(stem + mains[0], f"is missing; {name[:_NAME_CHARS]} belongs to it")


def _check_awq(
    how: Quantisation,
    name: str,
    tensor: StoredTensor,
    tensors: Mapping[str, StoredTensor],
    found: dict[str, Shape],
) -> None:
    """[in, out / 8] of int32, each with eight weights of a row of outputs."""
    if not name.endswith(".qweight"):
        return
    stem, packed = name.removesuffix(".qweight"), _WORD_BITS // how.bits
    columns, words = _matrix(name, tensor, "I32")
    groups = _groups(how, name, columns)
    _check_part(tensors, f"{stem}.qzeros", (groups, words), "I32")
    _check_part(tensors, f"{stem}.scales", (groups, words * packed))
    found[f"{stem}.weight"] = (words * packed, columns)


def _check_gptq(
    how: Quantisation,
    name: str,
    tensor: StoredTensor,
    tensors: Mapping[str, StoredTensor],
    found: dict[str, Shape],
) -> None:
    """[in * bits / 32, out] of int32, packed along the inputs; zero points along the outputs."""
    if not name.endswith(".qweight"):
        return
    stem = name.removesuffix(".qweight")
    words, rows = _matrix(name, tensor, "I32")
    if words * _WORD_BITS % how.bits or rows * how.bits % _WORD_BITS:
        raise refuse_tensor(name, f"has shape {list(tensor.shape)}, no whole {how.bits}-bit words")
    columns = words * _WORD_BITS // how.bits
    groups = _groups(how, name, columns)
    _check_part(tensors, f"{stem}.qzeros", (groups, rows * how.bits // _WORD_BITS), "I32")
    _check_part(tensors, f"{stem}.scales", (groups, rows))
    if f"{stem}.g_idx" in tensors:
        _check_part(tensors, f"{stem}.g_idx", (columns,), "I32")
    found[f"{stem}.weight"] = (rows, columns)


def _check_scaled(
    how: Quantisation,
    name: str,
    tensor: StoredTensor,
    tensors: Mapping[str, StoredTensor],
    found: dict[str, Shape],
) -> None:
    """Matrices of eight-bit numbers with a scale for all, for each row, or for each block; packed
    ones with scales of any shape."""
    for ending, scale in ((".weight_packed", ".weight_scale"), ("_proj_blocks", "_proj_scales")):
        if name.endswith(ending) and name.removesuffix(ending) + scale not in tensors:
            missing = name.removesuffix(ending) + scale
            raise refuse_tensor(missing, f"is missing; {name[:_NAME_CHARS]} needs it")
    if name.endswith(".weight_packed"):
        rows, _ = _matrix(name, tensor, tensor.dtype)
        found[name.removesuffix("_packed")] = (rows, 0)
    if not how.method or not name.endswith(".weight") or tensor.dtype not in (*_FP8, "I8"):
        return
    if how.block is not None:
        rows, columns = _matrix(name, tensor, tensor.dtype)
        blocks = (-(-rows // how.block[0]), -(-columns // how.block[1]))
        _check_part(tensors, f"{name}_scale_inv", blocks)
    elif f"{name}_scale" not in tensors and f"{name}_scale_inv" not in tensors:
        raise refuse_tensor(f"{name}_scale", f"is missing; {name[:_NAME_CHARS]} needs it")
    found[name] = tensor.shape


_Check = Callable[
    [Quantisation, str, StoredTensor, Mapping[str, StoredTensor], dict[str, Shape]], None
]
_CHECKS: Mapping[str, _Check] = {"awq": _check_awq, "gptq": _check_gptq}


def _groups(how: Quantisation, name: str, columns: int) -> int:
    size = columns if how.group_size == -1 else how.group_size
    if columns % size:
        raise refuse_tensor(name, f"has {columns} input columns, no whole groups of {size}")
    return columns // size


def _matrix(name: str, tensor: StoredTensor, dtype: str) -> tuple[int, int]:
    if tensor.dtype != dtype or len(tensor.shape) != 2:
        shown = list(tensor.shape)[:8]
        raise refuse_tensor(
            name, f"is {tensor.dtype} of shape {shown}, must be a matrix of {dtype}"
        )
    return tensor.shape[0], tensor.shape[1]


def _check_part(
    tensors: Mapping[str, StoredTensor], name: str, shape: Shape, dtype: str | None = None
) -> None:
    part = tensors.get(name)
    if part is None:
        raise refuse_tensor(name, f"is missing; config.json asks for it ({QUANTISATION})")
    if part.shape != shape:
        shown = list(part.shape)[:8]
        raise refuse_tensor(name, f"has shape {shown}, config.json asks for {list(shape)}")
    if dtype is not None and part.dtype != dtype:
        raise refuse_tensor(name, f"is {part.dtype}, must be {dtype}")


def refuse_tensor(name: str, message: str) -> InvalidArgument:
    """The error for a tensor of a checkpoint."""
    shown = (name if name.isascii() else ascii(name))[:_NAME_CHARS]
    return InvalidArgument(f"tensor {shown} {message}", field=shown)
