"""Element types a stored tensor may have, under the names that safetensors uses."""

from __future__ import annotations

from services.common.errors import InvalidArgument

ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "F8_E5M2": 1}

TORCH_NAMES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


def item_bytes(dtype: str) -> int:
    """Bytes of one element; raises InvalidArgument for a type the store does not keep."""
    size = ITEM_BYTES.get(dtype) if isinstance(dtype, str) else None
    if size is None:
        raise InvalidArgument(
            f"dtype {ascii(dtype)[:40]} is not one of {', '.join(ITEM_BYTES)}", field="dtype"
        )
    return size
