"""The model that is to be served, as the operator's own store has it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from services.cli.mesh_directory import MeshError
from services.common.errors import NotFound, ShuntError
from services.model.backends import backends_of
from services.placement.estimate.model import ModelShape, built_in_names, load_model, parse_config
from services.tensorstore.places.backend import find_manifest, read_manifest
from services.tensorstore.places.uris import open_backend


@dataclass(frozen=True, slots=True)
class Stored:
    """A model, and what of it is known."""

    name: str
    shape: ModelShape
    digest: str = ""
    """Empty where only its sizes are known: it can be planned for, and not served."""
    size_bytes: int = 0


def stored_model(name: str, store: str, *, sizes_suffice: bool = False) -> Stored:
    """From a store, or, where its sizes suffice, from placement's own list. Raises MeshError."""
    try:
        backend = open_backend(store)
        digest = find_manifest(backend, name)
        _, manifest = read_manifest(backend, digest)
        served = backends_of(manifest.config, tiled=manifest.is_tiled)
        shape = parse_config(json.dumps(dict(manifest.config)), name)
        shape = replace(shape, backends=frozenset(served.names))
        return Stored(name, shape, digest, manifest.size_bytes)
    except NotFound:
        if sizes_suffice and name in built_in_names():
            return Stored(name, load_model(name))
    except ShuntError as error:
        raise MeshError(f"model {name} of {store}: {error.message}") from None
    raise MeshError(
        f"model {name} is not stored; `shunt model import SOURCE --name {name} --store {store}`"
        " brings it there"
    )
