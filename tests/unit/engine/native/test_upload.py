"""What reaches a device is what was stored, by way of two buffers that take turns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from services.engine.native.upload import ALONE_BYTES, CudaLink, upload


class LateLink:
    """A device whose copies happen when they are waited for, as late as can be."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []
        self.under_way = 0
        self.most_under_way = 0

    def buffer(self, size_bytes: int) -> Tensor:
        self.buffers.append(torch.zeros(size_bytes, dtype=torch.uint8))
        return self.buffers[-1]

    def target(self, like: Tensor) -> Tensor:
        return torch.zeros(like.shape, dtype=like.dtype)

    def send(self, source: Tensor, target: Tensor) -> Callable[[], None]:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)

        def arrive() -> None:
            target.copy_(source)
            self.under_way -= 1

        return arrive


def weights() -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(2)
    return {
        "plain": torch.randn(37, 24, generator=made).bfloat16(),
        "transposed": torch.randn(40, 17, generator=made).bfloat16().t(),
        "norm": torch.randn(24, generator=made),
        "one": torch.randn(1, 1, generator=made),
    }


@pytest.mark.parametrize("buffer_bytes", [16, 100, 1 << 20])
def test_every_bit_arrives_and_one_buffer_is_filled_while_the_other_is_sent(
    buffer_bytes: int,
) -> None:
    link, tensors = LateLink(), weights()
    found = upload(tensors, link, buffer_bytes)
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].equal(tensor), name
        assert found[name].stride() == tensor.stride(), name
    assert len(link.buffers) == 2
    assert link.most_under_way == 2
    assert link.under_way == 0


def test_every_bit_arrives_of_a_buffer_that_many_threads_fill() -> None:
    large = torch.randn(700, 1501)
    found = upload({"large": large}, LateLink(), 2 * ALONE_BYTES + 16)
    assert found["large"].equal(large)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_bit_arrives_on_a_gpu() -> None:
    tensors = weights()
    found = upload(tensors, CudaLink("cuda:0"), 100)
    assert all(found[name].device.type == "cuda" for name in tensors)
    assert all(found[name].cpu().equal(tensor) for name, tensor in tensors.items())
