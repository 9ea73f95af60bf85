"""The client: read-only views of shared files, and nothing heavy but torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from services.common.errors import Aborted, InvalidArgument
from services.common.generation import LayerRange
from services.tensorstore.cache.residence import HeldFile, LocalResidence, Progress, Residence
from services.tensorstore.client import HOLD_ATTEMPTS, StoredModel, open_store
from services.tensorstore.format.slices import Selection
from tests.checkpoints import bits


def mapped_kib(root: Path, what: str) -> int:
    """Sum of one figure of smaps over the mappings below a directory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(" ", 1)[0]
        if "-" in first and not first.endswith(":"):
            inside = str(root) in line
        elif inside and first == f"{what}:":
            total += int(line.split()[1])
    return total


def test_the_mapping_is_read_only_and_carries_no_bytes_outside_the_range(tiny) -> None:
    with tiny.model().stage(LayerRange(1, 2)) as stage:
        lines = [
            line
            for line in Path("/proc/self/maps").read_text().splitlines()
            if str(tiny.root / "objects") in line
        ]
        assert lines
        assert all(" r--s " in line for line in lines)
        assert all("layers.1." in name for name in stage.tensors)


def test_released_pages_are_given_back_and_come_again(smollm2_store: Path, smollm2) -> None:
    with smollm2.stage(LayerRange(0, 4)) as stage:
        tensors = [t for t in stage.tensors.values() if t.dim() == 2]
        before = [t.float().sum().item() for t in tensors]
        touched = mapped_kib(smollm2_store, "Rss")
        assert touched * 1024 > 0.9 * sum(t.nbytes for t in tensors)
        assert mapped_kib(smollm2_store, "Private_Dirty") == 0
        stage.release()
        assert mapped_kib(smollm2_store, "Rss") < touched / 20
        assert [t.float().sum().item() for t in tensors] == before


def test_two_loads_share_their_memory(smollm2_store: Path, smollm2) -> None:
    with smollm2.stage(LayerRange(0, 4)) as one, smollm2.stage(LayerRange(0, 4)) as other:
        size = sum(t.nbytes for t in one.tensors.values())
        for stage in (one, other):
            for tensor in stage.tensors.values():
                tensor.float().sum()
        assert mapped_kib(smollm2_store, "Rss") * 1024 > 1.9 * size
        assert mapped_kib(smollm2_store, "Pss") * 1024 < 1.1 * size


def test_tensors_outlive_the_stage_while_they_are_referenced(tiny) -> None:
    with tiny.model().stage(LayerRange(0, 1)) as stage:
        tensor = stage.tensors["model.layers.0.self_attn.q_proj.weight"]
        before = tensor.clone()
    del stage
    assert tensor.view(-1).tolist().__len__() == before.numel()


def test_a_version_is_opened_by_its_digest(tiny) -> None:
    digest = tiny.imported.digest
    model = open_store(tiny.root.as_uri()).model("tiny", digest)
    assert model.digest == digest
    assert model.config == tiny.config
    assert set(model.tokenizer_files()) == {"tokenizer.json", "generation_config.json"}


class Replacing:
    """A residence some of whose files are other ones by the time they are mapped."""

    def __init__(self, below: Residence, times: int, *, leave: bool) -> None:
        self.below, self.times, self.leave = below, times, leave

    @contextmanager
    def hold(self, selection: Selection, progress: Progress | None) -> Iterator[list[HeldFile]]:
        with self.below.hold(selection, progress) as held:
            path = Path(held[-1])
            if not self.times:
                yield held
                return
            self.times -= 1
            aside = path.rename(path.with_name("aside"))
            if self.leave:
                path.write_bytes(bytes(held[-1].size_bytes))
            try:
                yield held
            finally:
                aside.replace(path)


@pytest.mark.parametrize("leave", [True, False])
def test_what_is_mapped_is_what_was_verified(tiny, leave: bool) -> None:
    wanted = tiny.imported.manifest

    def stage(times: int) -> None:
        residence = Replacing(LocalResidence(tiny.root), times, leave=leave)
        model = StoredModel("tiny", tiny.imported.digest, wanted, tiny.backend, residence)
        with model.stage(LayerRange(0, 3)) as stage:
            for name, tensor in stage.tensors.items():
                assert torch.equal(bits(tensor), bits(tiny.tensors[name])), name

    stage(HOLD_ATTEMPTS - 1)
    with pytest.raises(Aborted):
        stage(HOLD_ATTEMPTS)


@pytest.mark.parametrize("uri", ["http://x/y", "s3://", "s3:///x", "file://host/x", "s3://b/p?q=1"])
def test_an_unknown_uri_is_refused(uri: str) -> None:
    with pytest.raises(InvalidArgument):
        open_store(uri)


def test_the_client_imports_neither_kit_nor_grpc() -> None:
    script = (
        "import sys, services.tensorstore.client;"
        "print(*sorted({m for m in sys.modules if m.startswith('services.common')}));"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}"
        " & {'grpc','boto3','pydantic','opentelemetry','tenacity','gguf','tokenizers','typer'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    ours, heavy = done.stdout.split("\n")[:2]
    told = "services.common services.common.errors services.common.results services.common.roles"
    assert ours == told
    assert heavy == ""
