"""`shunt model`: import, list, show, export, verify, prefetch, push, pull, gc, delete."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Column, Table

from services.common.errors import DataLoss, InvalidArgument, NotFound, ShuntError
from services.common.generation import LayerRange

if TYPE_CHECKING:
    from services.tensorstore.places.backend import ObjectReader
    from services.tensorstore.sources.checkpoint import WeightsCheckpoint

app = typer.Typer(help="Stored models and their weights.", no_args_is_help=True)
_errors = Console(stderr=True)

DEFAULT_STORE = ".shunt/store"

StoreOption = Annotated[
    str,
    typer.Option("--store", envvar="SHUNT_TENSORSTORE_STORE", help="Path, file://… or s3://…"),
]
EndpointOption = Annotated[
    str | None,
    typer.Option("--endpoint-url", envvar="SHUNT_TENSORSTORE_ENDPOINT_URL", help="S3 endpoint."),
]
CacheOption = Annotated[
    Path | None, typer.Option("--cache-dir", help="Where chunks of a remote store are kept.")
]
NameArgument = Annotated[str, typer.Argument(help="The model's name.")]
LayersOption = Annotated[str, typer.Option("--layers", help="A:B, half-open; all by default.")]
RankOption = Annotated[str, typer.Option("--tp-rank", help="R/N: rank R, from 0, of N.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document.")]


@app.command("import")
def import_(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A Hugging Face directory, a GGUF file, or hf:ORG/NAME@REVISION on a hub"
            " (HF_ENDPOINT, HF_TOKEN); by default SmolLM2's package."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The model's name; of a hub's, its own by default.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    endpoint_url: EndpointOption = None,
) -> None:
    """Stores a checkpoint; an import that was interrupted goes on where it stopped."""
    from services.tensorstore.format.names import check_model_name
    from services.tensorstore.importer import import_checkpoint
    from services.tensorstore.places.uris import open_backend
    from services.tensorstore.sources.opening import DEFAULT_MODEL, HUB_PREFIX

    with _reported(), ExitStack() as held:
        if source is not None and name is None and not source.startswith(HUB_PREFIX):
            raise InvalidArgument("--name is needed for a source of your own", field="name")
        backend = open_backend(store, endpoint_url)
        if source is not None and source.startswith(HUB_PREFIX):
            name = check_model_name(name or _name_on_hub(source))
            checkpoint: WeightsCheckpoint = held.enter_context(_from_hub(source, store))
        else:
            name = check_model_name(name or DEFAULT_MODEL)
            checkpoint = held.enter_context(_from_host(source))
        with progress_bar(f"import {name}") as progress:
            done = import_checkpoint(checkpoint, backend, name, progress)
    print(f"{name} {done.digest} stored {done.stored_bytes} bytes, {done.kept_bytes} were there")


@contextmanager
def _from_host(source: str | None) -> Iterator[WeightsCheckpoint]:
    from services.tensorstore.sources.opening import default_source, open_source

    with closing(open_source(default_source() if source is None else Path(source))) as checkpoint:
        yield checkpoint


def _name_on_hub(source: str) -> str:
    from services.tensorstore.sources.hub.listing import parse_hub_name

    return parse_hub_name(source).name


@contextmanager
def _from_hub(source: str, store: str) -> Iterator[WeightsCheckpoint]:
    """Fetched beside the store, or beside the caches of one that is elsewhere."""
    from huggingface_hub import HfApi

    from services.tensorstore.places.uris import default_cache_directory, local_path
    from services.tensorstore.sources.hub.listing import parse_hub_name
    from services.tensorstore.sources.hub.staging import staged

    model, directory = parse_hub_name(source), local_path(store)
    root = (default_cache_directory() if directory is None else directory) / "hub"
    with ExitStack() as held:
        with progress_bar(f"fetch {model.repository}") as progress:
            checkpoint = held.enter_context(staged(HfApi(), model, root, directory, progress))
        yield checkpoint


@app.command("list")
def list_(
    json_: JsonOption = False,
    store: StoreOption = DEFAULT_STORE,
    endpoint_url: EndpointOption = None,
) -> None:
    """Lists the models; one that cannot be read is listed with what is wrong with it."""
    from services.tensorstore.places.uris import open_reader

    with _reported():
        _check_there(store)
        reader = open_reader(store, endpoint_url)
        models = [_summary_or_problem(reader, name) for name in reader.names()]
    if json_:
        print(json.dumps(models))
        return
    whole, rest = Column("name", no_wrap=True), Column("digest", overflow="fold")
    table = Table(whole, "layers", "MB", "TP degrees", rest, box=None)
    for model in models:
        if "problem" in model:
            table.add_row(model["name"], "", "", "", model["problem"])
            continue
        degrees = ", ".join(map(str, model["tp_degrees"]))
        size = f"{model['size_bytes'] / 1e6:.1f}"
        table.add_row(model["name"], str(model["layers"]), size, degrees, model["digest"])
    Console().print(table)


@app.command()
def show(
    name: NameArgument,
    json_: JsonOption = False,
    store: StoreOption = DEFAULT_STORE,
    endpoint_url: EndpointOption = None,
) -> None:
    """Shows what a model is made of."""
    from services.tensorstore.format.names import check_model_name
    from services.tensorstore.places.uris import open_reader

    with _reported():
        found = _summary(open_reader(store, endpoint_url), check_model_name(name), whole=True)
    if json_:
        print(json.dumps(found))
        return
    table = Table(show_header=False, box=None)
    for key, value in found.items():
        text = json.dumps(value) if isinstance(value, dict | list) else str(value)
        table.add_row(key, text)
    Console().print(table)


@app.command()
def export(
    name: NameArgument,
    out: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    layers: LayersOption = "",
    tp_rank: RankOption = "0/1",
    store: StoreOption = DEFAULT_STORE,
    endpoint_url: EndpointOption = None,
    cache_dir: CacheOption = None,
) -> None:
    """Writes any slice as safetensors, under the original names."""
    from services.tensorstore.client import open_store
    from services.tensorstore.export import export as export_slice

    with _reported():
        opened = open_store(store, endpoint_url=endpoint_url, cache_directory=cache_dir)
        model = opened.model(name)
        rank, degree = _rank(tp_rank)
        with progress_bar(f"export {name}") as progress:
            size = export_slice(model, out, _layers(layers, model.layers), degree, rank, progress)
    print(f"{out} {size} bytes")


@app.command()
def verify(
    name: NameArgument,
    store: StoreOption = DEFAULT_STORE,
    endpoint_url: EndpointOption = None,
    cache_dir: CacheOption = None,
) -> None:
    """Reads every byte again, in the store and in its cache; exits 1 and names what is damaged."""
    from services.tensorstore.cache import held
    from services.tensorstore.places.backend import find_manifest, read_manifest
    from services.tensorstore.places.uris import default_cache_directory, local_path, open_backend

    with _reported():
        backend = open_backend(store, endpoint_url)
        digest = find_manifest(backend, name)
        _, manifest = read_manifest(backend, digest)
        roots = [cache_dir] if cache_dir is not None else []
        if cache_dir is None and local_path(store) is None:
            roots = [default_cache_directory()]
        with progress_bar(f"verify {name}") as progress:
            damaged = held.verify(backend, roots, digest, manifest, progress)
    for found in damaged.objects:
        print(f"damaged: {found}")
    for path, chunk in damaged.files.items():
        print(f"damaged: {chunk} in {path}")
    if damaged.objects or damaged.files:
        raise typer.Exit(1)
    print(f"{name} {digest} is whole")


@app.command()
def prefetch(
    name: NameArgument,
    layers: LayersOption = "",
    tp_rank: RankOption = "0/1",
    store: StoreOption = DEFAULT_STORE,
    endpoint_url: EndpointOption = None,
    cache_dir: CacheOption = None,
) -> None:
    """Brings a slice to this node's cache (or, at grpc://host:port, to that of a service)."""
    from services.tensorstore.client import open_store

    with _reported():
        opened = open_store(store, endpoint_url=endpoint_url, cache_directory=cache_dir)
        model = opened.model(name)
        rank, degree = _rank(tp_rank)
        with progress_bar(f"prefetch {name}") as progress:
            model.prefetch(_layers(layers, model.layers), degree, rank, progress=progress)
    print(f"{name} {model.digest} is here")


@app.command()
def push(
    name: NameArgument,
    target: Annotated[str, typer.Argument(help="URI of the store to copy to.")],
    store: StoreOption = DEFAULT_STORE,
    endpoint_url: EndpointOption = None,
    to_endpoint_url: Annotated[
        str | None, typer.Option(help="S3 endpoint of the target, if it is another.")
    ] = None,
) -> None:
    """Copies a model to another store; what is there already is not sent."""
    _copy(name, (store, endpoint_url), (target, to_endpoint_url or endpoint_url))


@app.command()
def pull(
    name: NameArgument,
    source: Annotated[str, typer.Argument(help="URI of the store to copy from.")],
    store: StoreOption = DEFAULT_STORE,
    endpoint_url: EndpointOption = None,
    from_endpoint_url: Annotated[
        str | None, typer.Option(help="S3 endpoint of the source, if it is another.")
    ] = None,
) -> None:
    """Copies a model from another store."""
    _copy(name, (source, from_endpoint_url or endpoint_url), (store, endpoint_url))


@app.command()
def delete(
    name: NameArgument, store: StoreOption = DEFAULT_STORE, endpoint_url: EndpointOption = None
) -> None:
    """Forgets a name; `gc` frees the space."""
    from services.tensorstore.places.uris import open_backend

    with _reported():
        _check_there(store)
        existed = open_backend(store, endpoint_url).withdraw(name)
    print(f"{name} is gone" if existed else f"{name} was not there")


@app.command()
def gc(
    grace_s: Annotated[
        float, typer.Option("--grace-s", help="Objects younger than this stay.", min=0)
    ] = 3600.0,
    store: StoreOption = DEFAULT_STORE,
    endpoint_url: EndpointOption = None,
) -> None:
    """Deletes the objects that no model's name leads to."""
    from services.tensorstore import upkeep
    from services.tensorstore.places.uris import open_backend

    with _reported():
        _check_there(store)
        done = upkeep.collect(open_backend(store, endpoint_url), time.time(), grace_s)
    print(f"{done.objects} objects, {done.size_bytes} bytes, {done.leftovers} leftovers deleted")


def _check_there(store: str) -> None:
    """A directory that is none has no models: that is no answer to who misspelt its name."""
    from services.tensorstore.places.uris import local_path

    directory = local_path(store)
    if directory is not None and not directory.is_dir():
        raise NotFound(f"there is no store at {store}; `shunt model import` makes one")


def _copy(name: str, source: tuple[str, str | None], target: tuple[str, str | None]) -> None:
    from services.tensorstore import upkeep
    from services.tensorstore.places.uris import open_backend

    with _reported(), progress_bar(f"copy {name}") as progress:
        digest, copied = upkeep.copy(open_backend(*source), open_backend(*target), name, progress)
    print(f"{name} {digest} copied {copied} bytes")


def _summary_or_problem(reader: ObjectReader, name: str) -> dict[str, Any]:
    try:
        return _summary(reader, name)
    except (DataLoss, NotFound) as error:
        return {"name": name, "problem": error.message}


def _summary(reader: ObjectReader, name: str, *, whole: bool = False) -> dict[str, Any]:
    from services.model.backends import backends_of
    from services.tensorstore.places.backend import find_manifest, read_manifest, read_whole
    from services.tensorstore.sources.checkpoint import ORIGIN_FILE

    digest = find_manifest(reader, name)
    _, manifest = read_manifest(reader, digest)
    origin = manifest.files.get(ORIGIN_FILE)
    found: dict[str, Any] = {
        "name": name,
        "digest": digest,
        "layers": manifest.tiling.layers,
        "size_bytes": manifest.size_bytes,
        "tp_degrees": list(manifest.tiling.degrees()),
    }
    if whole:
        served = backends_of(manifest.config, tiled=manifest.is_tiled)
        found |= {
            "backends": list(served.names),
            "reasons": dict(served.reasons),
            "limits": {name: list(limits) for name, limits in served.limits.items() if limits},
            "tensor_layout": "tiled" if manifest.is_tiled else "whole",
            "origin": json.loads(read_whole(reader, origin.digest, origin.size_bytes))
            if origin is not None
            else None,
            "tied": manifest.tied,
            "tensors": len(manifest.tensors),
            "chunks": len(manifest.chunks),
            "tiles": sum(len(chunk.ends) for chunk in manifest.chunks),
            "files": {key: file.size_bytes for key, file in manifest.files.items()},
            "config": dict(manifest.config),
        }
    return found


def _layers(text: str, layers: int) -> LayerRange:
    if not text:
        return LayerRange(0, layers)
    start, _, end = text.partition(":")
    if not (start.isdecimal() and end.isdecimal() and len(text) < 20):
        raise InvalidArgument("--layers must be A:B", field="layers")
    return LayerRange(int(start), int(end))


def _rank(text: str) -> tuple[int, int]:
    rank, _, degree = text.partition("/")
    if not (rank.isdecimal() and degree.isdecimal() and len(text) < 20):
        raise InvalidArgument("--tp-rank must be R/N", field="tp_rank")
    return int(rank), int(degree)


class _Bar:
    def __init__(self, bar: Progress, task: Any) -> None:
        self._bar = bar
        self._task = task

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        self._bar.update(self._task, completed=done_bytes, total=total_bytes)


@contextmanager
def progress_bar(title: str) -> Iterator[_Bar]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=_errors, transient=not sys.stderr.isatty()) as bar:
        yield _Bar(bar, bar.add_task(title, total=None))


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except ShuntError as error:
        told = f"error: {error.message}"
        _errors.print(told, style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
