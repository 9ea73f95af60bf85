"""The self-test sees what it is there to see."""

from __future__ import annotations

import pytest
import torch

from services.engine.native import exactness, kernels
from services.engine.native.compiled import CompiledPacking
from services.engine.native.slices import slice_of
from services.engine.native.torch_layers import TorchPacking
from services.engine.stage.spans import Span

LEVELS = kernels.supported_levels()


class Tampered:
    """An arithmetic with a flaw put in behind it."""

    def __init__(self, inner, flaw):
        self._inner, self._flaw = inner, flaw

    def forward(self, hidden, spans, asked=None):
        result = self._inner.forward(hidden, spans, asked)
        return self._flaw("forward" if asked is None else "asked", result, spans)

    def logits(self, hidden):
        return self._flaw("logits", self._inner.logits(hidden), ())


def _next(x):
    return torch.nextafter(x.float(), torch.tensor(9e9)).to(x.dtype) + (
        0.01 if x.dtype == torch.bfloat16 else 0
    )


FLAWS = {
    "rows of a decode": lambda where, x, spans: (
        _next(x) if where == "forward" and all(s.count == 1 for s in spans) else x
    ),
    "a chunk that begins inside a block": lambda where, x, spans: (
        _next(x) if any(s.start % 16 and s.count > 1 for s in spans) else x
    ),
    "large batches": lambda where, x, spans: (
        _next(x) if where == "forward" and len(spans) > 2 else x
    ),
    "single rows of the head": lambda where, x, spans: (
        _next(x) if where == "logits" and len(x) == 1 else x
    ),
    "rows that are asked for": lambda where, x, spans: _next(x) if where == "asked" else x,
    "not a number": lambda where, x, spans: x * float("nan") if where == "forward" else x,
}


def _made(packing, tensors, kv_blocks):
    """An arithmetic of all five layers."""
    layers = [packing.layer(tensors, layer) for layer in range(5)]
    return packing.arithmetic(layers, packing.head(tensors), kv_blocks)


def _layers(model, dtype=torch.bfloat16):
    library = kernels.load()
    if library is None:
        return _made(TorchPacking(model.config, dtype), model.tensors, 8)
    return _made(CompiledPacking(library, slice_of(model.config), dtype, 1), model.tensors, 8)


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_makes_a_stage_inexact(tiny_model, llama, flaw):
    model = tiny_model(llama)
    inner = _layers(model)
    options = {"config": model.config, "kv_blocks": 8, "dtype": torch.bfloat16, "last": True}
    assert exactness.is_exact(inner, **options)
    assert not exactness.is_exact(Tampered(inner, FLAWS[flaw]), **options)
    inner.close()


@pytest.mark.parametrize("kv_blocks", [1, 2, 3, 6, 64])
@pytest.mark.parametrize("layers", [range(0, 2), range(2, 5)])
def test_every_stage_is_exact_and_says_so(tiny_model, llama, kv_blocks, layers):
    model = tiny_model(llama)
    stage = model.stage(layers, kv_blocks=kv_blocks, self_test=True)
    assert stage.facts.exact
    assert stage.facts.numerics_class.startswith("exact-cpu-bf16-")
    stage.begin(kv_blocks)
    last = layers.stop == 5
    assert exactness.is_exact(stage._arithmetic, model.config, kv_blocks, torch.bfloat16, last=last)


def test_a_stage_that_was_not_tested_counts_as_inexact(tiny_model, llama):
    facts = tiny_model(llama).stage(self_test=False).facts
    assert not facts.exact
    assert facts.numerics_class.startswith("inexact-")


def test_the_class_is_that_of_the_arithmetic_not_of_model_or_layers(tiny_model, llama, qwen3):
    def name(raw, layers, **options):
        return tiny_model(raw).stage(layers, self_test=True, **options).facts.numerics_class

    reference = name(llama, range(0, 2))
    assert name(llama, range(2, 5), threads=2) == reference
    assert name(qwen3, range(0, 5)) == reference
    assert name(llama, range(0, 2), dtype="fp32") != reference
    assert name(llama, range(0, 2), arithmetic="torch") != reference


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_a_row_among_hundreds_is_that_row_alone(tiny_model, llama, level):
    model, count = tiny_model(llama), 300
    library = kernels.load(level=level)
    packing = CompiledPacking(library, slice_of(model.config), torch.bfloat16, 1)
    layers = _made(packing, model.tensors, 2 * count)
    rows = torch.randn(count, 96, generator=torch.Generator().manual_seed(4)).bfloat16()
    tables = [range(2 * row, 2 * row + 2) for row in range(count)]
    alone = [
        layers.forward(rows[row : row + 1].clone(), [Span(0, 1, 0, tables[row])])
        for row in range(count)
    ]
    for together in (2, 16, 17, 31, 33, 96, 255, 257, count):
        spans = [Span(row, 1, 0, tables[row]) for row in range(together)]
        result = layers.forward(rows[:together].clone(), spans)
        assert result.equal(torch.cat(alone[:together])), together
        assert layers.logits(result).equal(
            torch.cat([layers.logits(row.clone()) for row in alone[:together]])
        ), together
    layers.close()


@pytest.mark.skipif(len(LEVELS) < 2, reason="needs two levels")
def test_levels_of_one_arithmetic_give_the_same_bits(tiny_model, llama):
    model = tiny_model(llama)
    found = {}
    for level in LEVELS:
        library = kernels.load(level=level)
        for dtype in (torch.bfloat16, torch.float32):

            def packer(part, library=library, dtype=dtype):
                return CompiledPacking(library, part, dtype, 1)

            layers = _made(packer(slice_of(model.config)), model.tensors, 8)
            rows = torch.randn(40, 96, generator=torch.Generator().manual_seed(3)).to(dtype)
            result = layers.forward(rows, [Span(0, 40, 0, range(3))])
            found.setdefault((level.arithmetic, dtype), []).append(
                (exactness.fingerprint(packer, dtype, exactness.PROBE), result)
            )
            layers.close()
    assert any(len(same) > 1 for same in found.values())
    for same in found.values():
        for print_, result in same:
            assert print_ == same[0][0]
            assert result.equal(same[0][1])
