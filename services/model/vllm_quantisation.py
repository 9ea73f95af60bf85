"""Which quantised weights vLLM computes, on what device and in what type.

What it computes nowhere is told by its configuration classes; what its build for CPUs has no
kernels for was tried there. Of GPUs nothing was tried: what is not refused here, vLLM may refuse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from services.common.errors import FailedPrecondition
from services.model.fields import flag, refuse
from services.model.quantisation import QUANTISATION, Quantisation, parse_quantisation

METHODS = ("awq", "compressed-tensors", "fp8", "gptq", "mxfp4")
"""Ways to quantise that are kept with all their parts."""
Device = Literal["CPU", "CPU without AMX", "GPU"]
_NARROW = ("awq", "fp8", "gptq", "mxfp4")
"""Those that vLLM computes in sixteen bits alone."""
_GPTQ_BITS = (4, 8)
_CPU_BITS = 4
"""Of packed whole numbers that its kernels for CPUs read."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Where weights quantised in one way are not computed."""

    what: str
    devices: Device | Literal[""] = ""
    """Those whose name begins so; all by default."""
    dtype: str = ""
    """The element type that they are not computed in; any by default."""

    def __str__(self) -> str:
        where = [f"on a {self.devices}"] if self.devices else []
        where += [f"in {self.dtype}"] if self.dtype else []
        return f"not {' '.join(where)}: {self.what}"


def check_computed(config: Mapping[str, Any]) -> None:
    """Raises InvalidArgument by field for what vLLM computes nowhere, or is malformed."""
    how = parse_quantisation(config)
    if not how.method:
        return
    if how.method not in METHODS:
        shown = f"{how.method!a:.40} is not one of {', '.join(METHODS)}"
        raise refuse(f"{QUANTISATION}.quant_method", shown)
    given = config[QUANTISATION]
    if how.method == "awq":
        _told(given, "zero_point")
    if how.method == "gptq":
        _check_gptq(how, given)


def _check_gptq(how: Quantisation, given: Mapping[str, Any]) -> None:
    if how.bits not in _GPTQ_BITS:
        raise refuse(f"{QUANTISATION}.bits", "vLLM computes gptq of 4 and of 8 bits")
    if not _told(given, "sym"):
        raise refuse(f"{QUANTISATION}.sym", "vLLM computes gptq around a zero in the middle alone")
    if _told(given, "desc_act") and how.group_size != -1:
        raise refuse(
            f"{QUANTISATION}.desc_act", "vLLM computes no groups in the order of activations"
        )


def _told(given: Mapping[str, Any], name: str) -> bool:
    return flag({f"{QUANTISATION}.{name}": given.get(name)}, f"{QUANTISATION}.{name}")


def limits_of(config: Mapping[str, Any]) -> tuple[Limit, ...]:
    """Where vLLM does not compute these weights, as far as that is known."""
    return tuple(_limits(parse_quantisation(config), config.get(QUANTISATION) or {}))


def _limits(how: Quantisation, given: Mapping[str, Any]) -> Iterator[Limit]:
    if how.method in _NARROW:
        yield Limit(f"{how.method} is computed in bf16", dtype="fp32")
    if how.method == "gptq" and how.bits != _CPU_BITS:
        yield Limit(f"gptq of {how.bits} bits has no kernel there", "CPU")
    if how.method == "fp8":
        yield Limit("fp8 with a scale a matrix or a block needs AMX there", "CPU without AMX")
    if how.method == "mxfp4":
        yield Limit("experts in mxfp4 need AMX there", "CPU without AMX")
    if how.method == "compressed-tensors":
        packed = _packed_bits(given)
        if packed:
            yield Limit("packed whole numbers are computed in bf16 there", "CPU", "fp32")
        if packed - {_CPU_BITS}:
            yield Limit(f"packed numbers of {max(packed)} bits have no kernel there", "CPU")


def _packed_bits(given: Mapping[str, Any]) -> set[int]:
    """Bits of the numbers that compressed-tensors packs into words."""
    groups = given.get("config_groups")
    found = set()
    for group in groups.values() if isinstance(groups, dict) else ():
        if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
            continue
        packed = (group.get("format") or given.get("format")) == "pack-quantized"
        bits = group["weights"].get("num_bits")
        if packed and type(bits) is int:
            found.add(bits)
    return found


def check_place(config: Mapping[str, Any], device: Device, dtype: str) -> None:
    """Raises FailedPrecondition where vLLM does not compute these weights on that device, in that
    type."""
    for limit in limits_of(config):
        if device.startswith(limit.devices) and limit.dtype in ("", dtype):
            raise FailedPrecondition(
                f"the vllm backend does not compute this model here: {limit}", field=QUANTISATION
            )
