"""How an engine gets its weights: open a model, stage a layer range, read mapped tensors.

    store = open_store("/var/lib/shunt/store")      # a path, file://, s3:// or grpc://host:port
    model = store.model("smollm2-135m-instruct")
    with model.stage(LayerRange(0, 12)) as stage:
        pack(stage.tensors["model.layers.0.mlp.up_proj.weight"])
        stage.release()

The tensors are read-only views of the node's files: one copy in memory for all engines of a
node, bit for bit the checkpoint's, under its names. Those that tensor parallelism cuts along
their second axis (o_proj, down_proj) are stored transposed: the view has the original shape and
strides (1, rows). This module loads inside foreign processes too, so it imports torch and the
error tree, nothing else that is heavy; grpc and boto3 only for URIs that ask for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from services.common.errors import Aborted
from services.tensorstore.cache.cache import ChunkCache
from services.tensorstore.cache.kept import KeptReader
from services.tensorstore.cache.mapping import MappedFiles
from services.tensorstore.cache.residence import LocalResidence, Progress, Residence
from services.tensorstore.format.manifest import Manifest
from services.tensorstore.format.names import check_model_name
from services.tensorstore.format.slices import Selection
from services.tensorstore.places.backend import (
    ObjectReader,
    find_manifest,
    read_manifest,
    read_whole,
)
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.places.uris import (
    DEFAULT_CACHE_BYTES,
    default_cache_directory,
    open_backend,
    service_of,
)

HOLD_ATTEMPTS = 5


class Layers(Protocol):
    """A half-open range of layers."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


class StageWeights:
    """The mapped weights of one rank of one stage."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], files: MappedFiles) -> None:
        self.tensors = tensors
        self._files = files

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def release(self) -> None:
        """Drops the pages that were read, for a backend that has packed them. The tensors stay
        valid: touched again, they are read again."""
        self._files.release()


class StoredModel:
    """One whole version of a stored model."""

    def __init__(
        self,
        name: str,
        digest: str,
        manifest: Manifest,
        backend: ObjectReader,
        residence: Residence,
    ) -> None:
        self.name = name
        self.digest = digest
        self.manifest = manifest
        self._backend = backend
        self._residence = residence

    @property
    def config(self) -> Mapping[str, Any]:
        """The Hugging Face config."""
        return self.manifest.config

    @property
    def layers(self) -> int:
        return self.manifest.tiling.layers

    def tokenizer_files(self) -> dict[str, bytes]:
        """tokenizer.json, tokenizer_config.json, generation_config.json and the like, by name."""
        return {
            name: read_whole(self._backend, file.digest, file.size_bytes)
            for name, file in self.manifest.files.items()
        }

    def size_bytes(self, layers: Layers, tp_degree: int = 1, rank: int = 0) -> int:
        """Bytes of one rank's slice as it is stored."""
        return self._select(layers, tp_degree, rank).size_bytes

    @contextmanager
    def stage(
        self,
        layers: Layers,
        tp_degree: int = 1,
        rank: int = 0,
        *,
        progress: Progress | None = None,
    ) -> Iterator[StageWeights]:
        """Maps one rank's slice of a layer range: exactly it, verified.

        The first range carries the embedding, the last the final norm and the lm_head (with tied
        weights, the embedding). Raises InvalidArgument for a range or degree the model does not
        have, DataLoss for damaged weights. Leaving the context releases the pages; tensors that
        are still referenced stay valid.
        """
        wanted = self._select(layers, tp_degree, rank)
        files = self._mapped(wanted, progress)
        place = {needed.chunk: number for number, needed in enumerate(wanted.ranges)}
        stage = StageWeights(
            {
                piece.tensor.name: files.view(place[piece.tensor.chunk], piece)
                for piece in wanted.pieces
            },
            files,
        )
        try:
            yield stage
        finally:
            stage.release()

    def prefetch(
        self,
        layers: Layers,
        tp_degree: int = 1,
        rank: int = 0,
        *,
        progress: Progress | None = None,
    ) -> None:
        """Brings a slice to this node, so that a later `stage` has nothing left to fetch."""
        with self._residence.hold(self._select(layers, tp_degree, rank), progress):
            return

    def _mapped(self, wanted: Selection, progress: Progress | None) -> MappedFiles:
        """What is mapped is what was held, or it is held again."""
        for _ in range(HOLD_ATTEMPTS - 1):
            with suppress(Aborted), self._residence.hold(wanted, progress) as held:
                return MappedFiles(held)
        with self._residence.hold(wanted, progress) as held:
            return MappedFiles(held)

    def _select(self, layers: Layers, tp_degree: int, rank: int) -> Selection:
        return Selection.of(self.digest, self.manifest, layers.start, layers.end, tp_degree, rank)


class Store:
    """A place that holds models."""

    def __init__(self, backend: ObjectReader, residence: Residence) -> None:
        self.backend = backend
        self._residence = residence

    def names(self) -> list[str]:
        """The models it holds."""
        return self.backend.names()

    def model(self, name: str, digest: str = "") -> StoredModel:
        """A model by name, or the version of it with this digest; raises NotFound or DataLoss."""
        check_model_name(name)
        digest = digest or find_manifest(self.backend, name)
        _, manifest = read_manifest(self.backend, digest)
        return StoredModel(name, digest, manifest, self.backend, self._residence)


def open_store(
    uri: str,
    *,
    endpoint_url: str | None = None,
    cache_directory: Path | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> Store:
    """A store by URI; raises InvalidArgument for a scheme it does not know.

    Of a directory (path or file://) the files themselves are mapped, from grpc:// the files of
    the node's service; a cache directory makes this process keep chunks of its own instead.
    """
    service = service_of(uri)
    if service is not None:
        from services.tensorstore.places.remote import RemoteReader, RemoteResidence

        remote = RemoteReader(service.address, service.role)
        if cache_directory is None:
            return Store(remote, RemoteResidence(remote))
        return _cached(remote, cache_directory, cache_bytes)
    backend = open_backend(uri, endpoint_url)
    if isinstance(backend, DirectoryBackend) and cache_directory is None:
        return Store(backend, LocalResidence(backend.root))
    return _cached(backend, cache_directory or default_cache_directory(), cache_bytes)


def _cached(reader: ObjectReader, root: Path, limit_bytes: int) -> Store:
    return Store(KeptReader(reader, root), ChunkCache(root, limit_bytes, [reader]))
