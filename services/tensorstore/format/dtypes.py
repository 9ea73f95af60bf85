"""Element types a stored tensor may have, under the names that safetensors uses."""

from __future__ import annotations

from services.common.errors import InvalidArgument

ITEM_BYTES = {
    "BF16": 2,
    "F16": 2,
    "F32": 4,
    "F64": 8,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I8": 1,
    "I16": 2,
    "I32": 4,
    "I64": 8,
    "U8": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "BOOL": 1,
}

WEIGHTS = ("BF16", "F16", "F32", "F8_E4M3", "F8_E5M2")
"""Those that are weights by themselves; numbers of the others mean something with others beside
them."""

TORCH_NAMES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
}


def item_bytes(dtype: str) -> int:
    """Bytes of one element; raises InvalidArgument for a type the store does not keep."""
    size = ITEM_BYTES.get(dtype) if isinstance(dtype, str) else None
    if size is None:
        raise InvalidArgument(
            f"dtype {ascii(dtype)[:40]} is not one of {', '.join(ITEM_BYTES)}", field="dtype"
        )
    return size
