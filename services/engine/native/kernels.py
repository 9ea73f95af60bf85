"""Builds and loads the C++ kernels.

Plain C functions through ctypes: nothing but a C++ compiler is needed, no Python or torch headers,
and every call releases the GIL. The library lies in a cache of the user's own, keyed by sources
and flags; contraction is off and every fused multiply-add spelled out, so its arithmetic follows
from the source and the instruction level, not from the compiler.

`python -m services.engine.native.kernels [DIRECTORY]` builds all levels ahead of time, for an
image that has no compiler at run time.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "kernels"
BUILD_TIMEOUT_S = 300
FLAGS = (
    *("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp"),
    *("-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-psabi"),
)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Level:
    """A set of instructions; two levels with one `arithmetic` give equal bits."""

    name: str
    cpu_flags: frozenset[str]
    compiler_flags: tuple[str, ...]
    arithmetic: str


_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18
_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx2", "fma")
_BF16 = (*(f"-m{flag}" for flag in _AVX512), "-mavx512bf16")
LEVELS = {
    "x86_64": (
        Level(
            "amx",
            frozenset({*_AVX512, "avx512_bf16", "amx_tile", "amx_bf16"}),
            (*_BF16, "-mamx-tile", "-mamx-bf16"),
            "amx",
        ),
        Level("avx512bf16", frozenset({*_AVX512, "avx512_bf16"}), _BF16, "dpbf16"),
        Level("avx512", frozenset(_AVX512), tuple(f"-m{flag}" for flag in _AVX512), "fma"),
        Level("avx2", frozenset({"avx2", "fma"}), ("-mavx2", "-mfma"), "fma"),
    ),
    "aarch64": (Level("neon", frozenset({"asimd"}), (), "fma"),),
}


class Kernels:
    """The loaded library."""

    def __init__(self, library: Path, level: Level, digest: str) -> None:
        self.level = level
        self.digest = digest
        dll = ctypes.CDLL(str(library))
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self.stage_new = dll.shunt_stage_new
        self.stage_new.restype = pointer
        self.stage_new.argtypes = [ctypes.c_int, pointer, pointer, pointer]
        self.stage_free = dll.shunt_stage_free
        self.stage_free.argtypes = [pointer]
        self.stage_add_layer = dll.shunt_stage_add_layer
        self.stage_add_layer.argtypes = [pointer, pointer, number]
        self.stage_forward = dll.shunt_stage_forward
        self.stage_forward.argtypes = [
            *(pointer, pointer, number, pointer, number, pointer, pointer, number),
            ctypes.c_int,
        ]
        self.stage_head = dll.shunt_stage_head
        self.stage_head.argtypes = [
            *(pointer, pointer, number, pointer, pointer, number),
            *(ctypes.c_float, ctypes.c_float, pointer, ctypes.c_int),
        ]
        self.ranks_memory_bytes = dll.shunt_ranks_memory_bytes
        self.ranks_memory_bytes.restype = number
        self.ranks_memory_bytes.argtypes = [number, number]
        self.ranks_new = dll.shunt_ranks_new
        self.ranks_new.restype = pointer
        self.ranks_new.argtypes = [pointer, number, number, number]
        self.ranks_free = dll.shunt_ranks_free
        self.ranks_free.argtypes = [pointer]
        self.ranks_gather = dll.shunt_ranks_gather
        self.ranks_gather.argtypes = [pointer, pointer, number, number, pointer]


def supported_levels() -> tuple[Level, ...]:
    """What this CPU has, best first; nothing on a CPU without fused multiply-add."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ()
    found: set[str] = set()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            found = set(value.split())
            break
    if "amx_tile" in found and not _may_use_tiles():
        found.remove("amx_tile")
    return tuple(level for level in LEVELS.get(platform.machine(), ()) if level.cpu_flags <= found)


def _may_use_tiles() -> bool:
    """Asks the kernel, once for all threads of the process; a sandbox may refuse."""
    answer: int = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    return answer == 0


def source_digest() -> str:
    """Digest of the sources: the arithmetic, whatever was built from it."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".h", ".cpp"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def default_cache() -> Path:
    """A folder of the user's own."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "shuntserve" / "kernels"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"shuntserve-{os.getuid()}" / "kernels"


def build(level: Level, cache: Path) -> Path | None:
    """The library for a level, built if the cache lacks it; None where that cannot be done."""
    key = hashlib.sha256(" ".join((source_digest(), *FLAGS, *level.compiler_flags)).encode())
    target = cache / f"{level.name}-{key.hexdigest()[:20]}.so"
    if target.is_file() and _is_ours(target) and _is_ours(cache):
        return target
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        log.warning("no C++ compiler, and no kernels of level %s built before", level.name)
        return None
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _is_ours(cache):
            log.warning("others may write to the kernel cache %s", cache)
            return None
        with (cache / "lock").open("w") as lock:  # one build, however many engines start at once
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (target.is_file() and _is_ours(target)):
                _compile(compiler, level, target)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"")[-2000:].decode(errors="replace")
        log.warning("level %s does not build (%s): %s", level.name, error, said)
        return None
    return target


def _is_ours(path: Path) -> bool:
    """Nobody but this user and root can have put it there, or can change it."""
    status = path.stat()
    return status.st_uid in (0, os.getuid()) and not status.st_mode & 0o022


def _compile(compiler: str, level: Level, target: Path) -> None:
    unfinished = target.with_suffix(f".{os.getpid()}")
    command = [compiler, *FLAGS, *level.compiler_flags, str(SOURCES / "stage.cpp"), "-o"]
    try:
        subprocess.run(
            [*command, str(unfinished)], check=True, capture_output=True, timeout=BUILD_TIMEOUT_S
        )
        unfinished.chmod(0o755)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def load(cache: Path | None = None, level: Level | None = None) -> Kernels | None:
    """The kernels for this CPU, or None where torch must do. A compiler too old for the best
    level may know the next."""
    for candidate in (level,) if level else supported_levels():
        library = build(candidate, cache or default_cache())
        if library is None:
            continue
        try:
            return Kernels(library, candidate, source_digest())
        except OSError as error:
            log.warning("the kernels do not load: %s", error)
    log.warning("no kernels for this machine: the engine computes with torch, as exact but slower")
    return None


def main() -> None:
    """Build every level of this machine's architecture into a folder."""
    cache = Path(sys.argv[1]) if len(sys.argv) > 1 else default_cache()
    for level in LEVELS.get(platform.machine(), ()):
        if build(level, cache) is None:
            sys.exit(1)


if __name__ == "__main__":
    logging.basicConfig()
    main()
