"""Stores and checkpoints for the tests below."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from services.tensorstore.client import StoredModel, open_store
from services.tensorstore.importer import Imported, import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import DEFAULT_MODEL, default_source, open_source
from tests.checkpoints import make_config, make_tensors, write_checkpoint


@pytest.fixture(scope="session")
def smollm2_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the default model, shared by the session: nobody may damage it."""
    root = tmp_path_factory.mktemp("smollm2")
    checkpoint = open_source(default_source())
    import_checkpoint(checkpoint, DirectoryBackend(root), DEFAULT_MODEL)
    checkpoint.close()
    return root


@pytest.fixture(scope="session")
def smollm2(smollm2_store: Path) -> StoredModel:
    return open_store(str(smollm2_store)).model(DEFAULT_MODEL)


class Tiny:
    """A tiny model, its tensors, and the store it was imported to."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.config = make_config(**changes)
        self.tensors = make_tensors(self.config)
        self.source = write_checkpoint(root / "source", self.config, self.tensors)
        self.root = root / "store"
        self.backend = DirectoryBackend(self.root)
        self.imported = self.store("tiny")

    def store(self, name: str) -> Imported:
        checkpoint = open_source(self.source)
        try:
            return import_checkpoint(checkpoint, self.backend, name)
        finally:
            checkpoint.close()

    def model(self) -> StoredModel:
        return open_store(str(self.root)).model("tiny")

    def files(self) -> list[Path]:
        """Every object's file but the manifest's."""
        objects = self.imported.manifest.objects()
        return [self.backend.path(digest) for digest in objects]


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
