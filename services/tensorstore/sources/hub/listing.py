"""What an operator names on a hub, and what the hub says is there: `hf:ORG/NAME@REVISION`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from huggingface_hub import HfApi, ModelInfo

from services.common.errors import DataLoss, InvalidArgument
from services.tensorstore.sources.hf_checkpoint import FILES, INDEX, OTHER_TEMPLATES, SUFFIX
from services.tensorstore.sources.hub.calls import told, tried
from services.tensorstore.sources.opening import HUB_PREFIX

MAX_FILES = 1 << 14
LISTING_TIMEOUT_S = 30.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_OTHER_WEIGHTS = (".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on a hub."""

    repository: str
    revision: str = "main"

    @property
    def name(self) -> str:
        """Its own, without its organisation's."""
        return self.repository.partition("/")[2]


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a commit. One of its digests is empty."""

    name: str
    size_bytes: int
    sha256: str
    """Of a file that the hub keeps beside git."""
    blob_id: str
    """Of one that git itself keeps: SHA-1 of a header and the file."""


@dataclass(frozen=True, slots=True)
class HubListing:
    """The files of a commit that may be fetched; no code and no pickle is among them."""

    repository: str
    commit: str
    files: tuple[HubFile, ...]

    def named(self, names: Collection[str]) -> tuple[HubFile, ...]:
        """Raises InvalidArgument for a name that the commit does not have."""
        known = {file.name: file for file in self.files}
        for name in names:
            if name not in known:
                raise InvalidArgument(
                    f"{self.repository}@{self.commit[:12]}: {INDEX} asks for {name[:80]}, which is"
                    " not there",
                    field="weight_map",
                )
        return tuple(known[name] for name in sorted(names))

    @property
    def small(self) -> tuple[HubFile, ...]:
        """All but the weights."""
        return tuple(file for file in self.files if not file.name.endswith(SUFFIX))


def parse_hub_name(text: str) -> HubModel:
    """`hf:ORG/NAME` or `hf:ORG/NAME@REVISION`; raises InvalidArgument for anything else."""
    repository, at, revision = text.removeprefix(HUB_PREFIX).partition("@")
    if _NAME.fullmatch(repository) is None or ".." in repository:
        raise InvalidArgument(
            f"source: {ascii(text)[1:-1][:80]} is not {HUB_PREFIX}ORG/NAME, or that and @REVISION",
            field="source",
        )
    if at and (_REVISION.fullmatch(revision) is None or ".." in revision):
        raise InvalidArgument(
            f"revision: {ascii(revision)[1:-1][:80]} is not a branch, a tag or a commit",
            field="revision",
        )
    return HubModel(repository, revision or "main")


def list_files(api: HfApi, model: HubModel) -> HubListing:
    """What the revision holds, by the commit that it stands for. Raises NotFound, PermissionDenied,
    Unavailable, DataLoss, or InvalidArgument where nothing of it can be imported."""
    info = tried(lambda: _described(api, model))
    commit, siblings = info.sha, info.siblings or []
    if not isinstance(commit, str) or _COMMIT.fullmatch(commit) is None:
        raise DataLoss(f"the hub names no commit of {model.repository}", field="commit")
    if len(siblings) > MAX_FILES:
        raise InvalidArgument(
            f"{model.repository} has {len(siblings)} files, at most {MAX_FILES} are looked at",
            field="source",
        )
    names = [str(sibling.rfilename) for sibling in siblings]
    _check_names(model, names)
    files = tuple(_file(sibling) for sibling in siblings if _is_fetched(str(sibling.rfilename)))
    return HubListing(model.repository, commit, files)


def _described(api: HfApi, model: HubModel) -> ModelInfo:
    with told(model.repository, model.revision):
        return api.model_info(
            model.repository,
            revision=model.revision,
            files_metadata=True,
            timeout=LISTING_TIMEOUT_S,
        )


def _is_fetched(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    if _FILE.fullmatch(file) is None or ".." in file:
        return False
    if folder == OTHER_TEMPLATES:
        return file.endswith(".jinja")
    return not folder and (file in FILES or file == INDEX or file.endswith(SUFFIX))


def _file(sibling: Any) -> HubFile:
    name, size, lfs = str(sibling.rfilename), sibling.size, sibling.lfs
    if type(size) is not int or size < 0:
        raise DataLoss(f"the hub names no size of {name}", field=name)
    sha256 = str(lfs.sha256 or "") if lfs is not None else ""
    blob_id = "" if sha256 else str(sibling.blob_id or "")
    if not (sha256 or blob_id):
        raise DataLoss(f"the hub names no digest of {name}", field=name)
    return HubFile(name, size, sha256, blob_id)


def _check_names(model: HubModel, names: Sequence[str]) -> None:
    where = f"{model.repository}@{model.revision}"
    fetched = {name for name in names if _is_fetched(name)}
    if not any(name.endswith(SUFFIX) for name in fetched):
        raise InvalidArgument(
            f"{where} holds no *{SUFFIX}{_instead(names)}: name a model or a revision that does",
            field="source",
        )
    if "config.json" not in fetched:
        raise InvalidArgument(f"{where} holds no config.json", field="source")


def _instead(names: Iterable[str]) -> str:
    others = {PurePosixPath(name).suffix for name in names} & {*_OTHER_WEIGHTS}
    return f" (only {', '.join(sorted(others))})" if others else ""
