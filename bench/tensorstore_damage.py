"""Damage by the thousand: flipped bits must all be found, mutants must never crash a reader."""

from __future__ import annotations

import json
import random
from contextlib import closing
from pathlib import Path
from typing import Any

from safetensors.torch import save

from bench.bounds import rate_bound_95
from services.common.errors import DataLoss, InvalidArgument
from services.common.generation import LayerRange
from services.tensorstore.cache.cache import ChunkCache
from services.tensorstore.client import open_store
from services.tensorstore.format import manifest
from services.tensorstore.format.slices import Selection
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.backend import Pieces
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources import safetensors_file
from services.tensorstore.sources.checkpoint import check
from services.tensorstore.sources.gguf import file as gguf_file
from services.tensorstore.sources.gguf.checkpoint import GgufCheckpoint
from services.tensorstore.sources.opening import open_source
from tests.checkpoints import make_config, make_tensors, write_checkpoint, write_gguf
from tests.mutants import flip, mutate_bytes, mutate_gguf, mutate_json


def flips(root: Path, count: int) -> dict[str, Any]:
    """Half in stored objects, half in the disk cache before they enter memory."""
    config = make_config(num_hidden_layers=1)
    source = write_checkpoint(root / "source", config, make_tensors(config))
    backend = DirectoryBackend(root / "store")
    done = import_checkpoint(open_source(source), backend, "m")
    store, chaos = open_store(str(root / "store")), random.Random(1)
    selection = Selection.of(done.digest, done.manifest, 0, 1)
    disk = ChunkCache(root / "disk", 1 << 30, [backend])
    with disk.hold(selection, None) as paths:
        cached = [Path(path) for path in paths]
    stored = [backend.path(digest) for digest in [*done.manifest.objects(), done.digest]]
    found = {"stored": 0, "cache": 0}
    for number in range(count):
        where = "stored" if number % 2 else "cache"
        path = chaos.choice(stored if where == "stored" else cached)
        bit = chaos.randrange(path.stat().st_size * 8)
        flip(path, bit)
        try:
            if where == "stored":
                model = store.model("m")
                model.tokenizer_files()
                with model.stage(LayerRange(0, 1)):
                    pass
            else:
                memory = ChunkCache(
                    root / f"memory{number}", 1 << 30, [DirectoryBackend(disk.root)]
                )
                with memory.hold(selection, None):
                    pass
        except DataLoss:
            found[where] += 1
        flip(path, bit)
    missed = count - sum(found.values())
    return {
        "flips": count,
        "found": found,
        "missed": missed,
        "missed_rate_bound_95": rate_bound_95(missed, count),
    }


def fuzz(root: Path, count: int) -> dict[str, Any]:
    """Mutants of manifests, chunks, safetensors and GGUF; a crash is any other error."""
    root.mkdir()
    config = make_config(num_hidden_layers=1)
    tensors = make_tensors(config)
    source = write_checkpoint(root / "source", config, tensors)
    backend = DirectoryBackend(root / "store")
    done = import_checkpoint(open_source(source), backend, "m")
    selection = Selection.of(done.digest, done.manifest, 0, 1)
    whole = manifest.dump(done.manifest)
    document = json.loads(whole)
    weights = save({name: tensors[name] for name in list(tensors)[:3]})
    small = make_config(num_hidden_layers=1, intermediate_size=64, vocab_size=264)
    gguf = write_gguf(root / "sound.gguf", small).read_bytes()
    chaos, path = random.Random(2), root / "mutant"
    refused = accepted = crashes = 0
    first_crash = ""
    for number in range(count):
        try:
            match number % 20:
                case 0:
                    path.write_bytes(mutate_bytes(gguf[: 1 << 14], chaos))
                    gguf_file.read_header(path)
                case 1:
                    path.write_bytes(mutate_gguf(gguf, chaos))
                    _read_gguf(path)
                case 2 | 3:
                    path.write_bytes(mutate_bytes(weights, chaos))
                    safetensors_file.read_header(path)
                case 4:
                    load_mutant_chunks(backend, root / "cache" / str(number), selection, chaos)
                case n if n < 10:
                    _read_manifest(mutate_bytes(whole, chaos))
                case _:
                    mutant = json.dumps(mutate_json(document, chaos))
                    _read_manifest(mutant.encode("utf-8", "surrogatepass"))
            accepted += 1
        except (DataLoss, InvalidArgument):
            refused += 1
        except Exception as error:
            crashes += 1
            first_crash = first_crash or f"mutant {number}: {type(error).__name__}: {error}"[:200]
    found = {"mutants": count, "refused": refused, "accepted": accepted, "crashes": crashes}
    return found | ({"first_crash": first_crash} if crashes else {})


def _read_manifest(data: bytes) -> None:
    """What is accepted must be safe to map: every tensor inside its chunk."""
    found = manifest.parse(data)
    for tensor in found.tensors:
        if tensor.offset + tensor.size_bytes > found.chunks[tensor.chunk].size_bytes:
            raise AssertionError("a tensor outside its chunk was accepted")


def _read_gguf(path: Path) -> None:
    """All of it: header, tokenizer, config and every tensor."""
    with closing(GgufCheckpoint(path)) as checkpoint:
        check(checkpoint)
        for name, tensor in checkpoint.tensors.items():
            into = memoryview(bytearray(tensor.size_bytes))
            checkpoint.read_rows(name, 0, tensor.shape[0], into)


class _Mutating:
    def __init__(self, backend: DirectoryBackend, chaos: random.Random) -> None:
        self._backend = backend
        self._chaos = chaos

    def pieces(self, digest: str, start: int, stop: int) -> Pieces:
        for piece in self._backend.pieces(digest, start, stop):
            yield memoryview(mutate_bytes(bytes(piece), self._chaos))


def load_mutant_chunks(
    backend: DirectoryBackend, root: Path, selection: Selection, chaos: random.Random
) -> None:
    """Raises DataLoss, or hands out what was stored: longer and shorter answers are among them."""
    cache = ChunkCache(root, 1 << 30, [_Mutating(backend, chaos)])
    with cache.hold(selection, None) as paths:
        for path, wanted in zip(paths, selection.ranges, strict=True):
            digest = selection.manifest.chunks[wanted.chunk].digest
            if Path(path).read_bytes() != backend.path(digest).read_bytes():
                raise AssertionError("a damaged chunk was handed out")
