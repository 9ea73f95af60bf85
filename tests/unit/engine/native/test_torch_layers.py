"""What the layers in torch hold."""

from __future__ import annotations

import pytest
import torch

from services.engine.native.torch_layers import Linear


@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_of_the_host_is_copied_for_its_pages_are_the_store_s(transposed):
    weight = torch.randn(64, 32) if not transposed else torch.randn(32, 64).t()
    x, before = torch.randn(3, 32), weight.clone()
    linear = Linear(weight)
    weight.zero_()
    assert torch.allclose(linear(x), torch.nn.functional.linear(x, before), atol=1e-4)
