"""What a last stage computes of the rows it is asked for is what it would compute of all."""

from __future__ import annotations

import pytest
import torch

from services.engine.native import kernels
from services.engine.native.compiled import CompiledPacking
from services.engine.native.slices import slice_of
from services.engine.native.torch_layers import TorchPacking
from services.engine.stage.spans import Span
from tests.configs import LLAMA, QWEN3

LEVELS = kernels.supported_levels()
FAMILIES = {
    "llama": LLAMA,
    "queries that end within a column block": QWEN3,
    "norms of all heads": {**LLAMA, "model_type": "olmo2"},
    "windows and biases": {
        **LLAMA,
        "model_type": "mistral",
        "sliding_window": 21,
        "attention_bias": True,
    },
}
SPANS = [
    Span(0, 37, 0, (3, 9, 4)),
    Span(37, 1, 30, (1, 7)),
    Span(38, 20, 5, (0, 2)),
    Span(58, 4, 16, (5, 6)),
]
ROWS = 62
ASKED = {
    "none": [],
    "the last of all": [61],
    "the last of each": [36, 37, 57, 61],
    "runs, and one that ends where the next sequence begins": [0, 1, 2, 35, 36, 37, 40, 59, 60],
    "all but the first": list(range(1, ROWS)),
    "all": list(range(ROWS)),
}


def _implementations(config, dtype):
    found = [TorchPacking(config, dtype)]
    for level in LEVELS:
        library = kernels.load(level=level)
        if library is not None:
            found.append(CompiledPacking(library, slice_of(config), dtype, 1))
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_asked_rows_and_all_keys_and_values_are_those_of_a_whole_step(tiny_model, family, dtype):
    model = tiny_model(FAMILIES[family], num_hidden_layers=2)
    rows = torch.randn(ROWS, 96, generator=torch.Generator().manual_seed(2)).to(dtype)
    blocks = torch.arange(10)
    for packing in _implementations(model.config, dtype):
        packed = [packing.layer(model.tensors, layer) for layer in range(2)]
        head = packing.head(model.tensors)
        whole = packing.arithmetic(packed, head, 10)
        every = whole.forward(rows.clone(), SPANS)
        for name, asked in ASKED.items():
            layers = packing.arithmetic(packed, head, 10)
            found = layers.forward(rows.clone(), SPANS, asked)
            assert found.equal(every[asked]), (packing.name, name)
            assert layers.export_blocks(blocks).equal(whole.export_blocks(blocks)), name
            layers.close()
        whole.close()
