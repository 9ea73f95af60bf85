"""An import is whole or absent, resumes, stores once, and stays small in memory."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from services.common.errors import DataLoss, InvalidArgument, ResourceExhausted, ShuntError
from services.common.generation import LayerRange
from services.tensorstore import importer, upkeep
from services.tensorstore.client import open_store
from services.tensorstore.places.backend import read_manifest
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import default_source, open_source
from tests.checkpoints import (
    bits,
    make_config,
    make_tensors,
    smallest_tokenizer,
    write_checkpoint,
    write_gguf,
)
from tests.limits import no_file_above
from tests.mutants import mutate_json


def run_import(backend: DirectoryBackend, source: Path, name: str) -> importer.Imported:
    checkpoint = open_source(source)
    try:
        return importer.import_checkpoint(checkpoint, backend, name)
    finally:
        checkpoint.close()


def test_the_same_model_twice_stores_nothing_new(tiny) -> None:
    again = tiny.store("other")
    assert again.digest == tiny.imported.digest
    assert again.stored_bytes == 0


def test_a_changed_tensor_stores_only_its_chunk(tmp_path: Path) -> None:
    config = make_config(hidden_size=512, intermediate_size=1024, vocab_size=1024)
    tensors = make_tensors(config)
    backend = DirectoryBackend(tmp_path / "store")
    run_import(backend, write_checkpoint(tmp_path / "a", config, tensors), "a")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name] + 1
    changed = run_import(backend, write_checkpoint(tmp_path / "b", config, tensors), "b")
    manifest = len(importer.dump(changed.manifest))
    chunk = changed.manifest.chunks[changed.manifest.by_name[name].chunk]
    assert chunk.size_bytes < changed.manifest.size_bytes / 3
    assert changed.stored_bytes == chunk.size_bytes + manifest


@pytest.mark.parametrize("tied", [True, False])
def test_the_store_is_no_larger_than_the_checkpoint(tmp_path: Path, tied: bool) -> None:
    config = make_config(hidden_size=512, vocab_size=2048, tie_word_embeddings=tied)
    source = write_checkpoint(tmp_path / "a", config, make_tensors(config))
    backend = DirectoryBackend(tmp_path / "store")
    run_import(backend, source, "a")
    stored = sum(found.size_bytes for found in backend.objects())
    original = sum(path.stat().st_size for path in source.iterdir())
    assert stored <= 1.01 * original + 65536


def test_a_tied_head_that_is_the_embedding_is_stored_once(tmp_path: Path) -> None:
    config = make_config(tie_word_embeddings=True)
    tensors = make_tensors(config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    backend = DirectoryBackend(tmp_path / "store")
    done = run_import(backend, write_checkpoint(tmp_path / "a", config, tensors), "a")
    assert "lm_head.weight" not in done.manifest.by_name
    tensors["lm_head.weight"][0, 0] = 1 if tensors["lm_head.weight"][0, 0] != 1 else 2
    with pytest.raises(InvalidArgument, match="lm_head"):
        run_import(backend, write_checkpoint(tmp_path / "b", config, tensors), "b")
    assert backend.names() == ["a"]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from services.tensorstore.places.directory import DirectoryBackend
    from services.tensorstore.importer import import_checkpoint
    from services.tensorstore.sources.opening import open_source

    def progress(done, total):
        if done > total * float(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

    backend = DirectoryBackend(Path(sys.argv[2]))
    import_checkpoint(open_source(Path(sys.argv[1])), backend, "tiny", progress)
"""


@pytest.mark.parametrize("part", ["0.0", "0.5", "0.99"])
def test_a_killed_import_leaves_the_old_version_and_the_next_completes(tiny, part: str) -> None:
    old = tiny.imported.digest
    config = make_config(num_hidden_layers=5)
    tensors = make_tensors(config, seed=1)
    source = write_checkpoint(tiny.root.parent / "new", config, tensors)
    script = textwrap.dedent(KILLED)
    command = [sys.executable, "-c", script, str(source), str(tiny.root), part]
    assert subprocess.run(command, timeout=120).returncode == -9
    assert tiny.model().digest == old
    assert upkeep.verify(tiny.backend, old) == []
    assert list(tiny.backend.scratch().iterdir())  # what it was writing
    done = run_import(tiny.backend, source, "tiny")
    if part == "0.99":
        assert done.kept_bytes > 0.5 * done.manifest.size_bytes
    with tiny.model().stage(LayerRange(0, 5)) as stage:
        name = "model.layers.4.self_attn.o_proj.weight"
        assert torch.equal(bits(stage.tensors[name]), bits(tensors[name]))
    upkeep.collect(tiny.backend, 1e12)
    assert list(tiny.backend.scratch().iterdir()) == []


@pytest.mark.parametrize(
    ("owner", "method", "call", "size_bytes"),
    [
        (importer._Packer, "pack", 0, 3000),  # a chunk
        (importer._Packer, "pack", 2, 5000),
        (importer._Packer, "put_bytes", 0, 8),  # a file
        (importer._Packer, "put_bytes", 2, 1000),  # the manifest
        (DirectoryBackend, "publish", 0, 60),  # the name
    ],
)
def test_a_full_disk_leaves_the_store_readable_and_the_next_import_completes(
    tiny,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    call: int,
    size_bytes: int,
) -> None:
    config, calls = make_config(num_hidden_layers=2), itertools.count()
    tensors = make_tensors(config, seed=1)
    source = write_checkpoint(tiny.root.parent / "new", config, tensors)
    (source / "tokenizer.json").write_text(smallest_tokenizer().to_str(pretty=True))
    original = getattr(owner, method)

    def on_a_full_disk(*arguments: object) -> object:
        if next(calls) < call:
            return original(*arguments)
        with no_file_above(size_bytes):
            return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, on_a_full_disk)
        with pytest.raises(ResourceExhausted, match="space"):
            run_import(tiny.backend, source, "tiny")
    assert next(calls) == call + 1
    assert tiny.model().digest == tiny.imported.digest
    assert upkeep.verify(tiny.backend, tiny.imported.digest) == []
    assert list((tiny.root / "tmp").iterdir()) == []
    done = run_import(tiny.backend, source, "tiny")
    assert tiny.model().digest == done.digest != tiny.imported.digest
    assert upkeep.verify(tiny.backend, done.digest) == []


MEASURED = """
    import sys
    from pathlib import Path
    from services.tensorstore.places.directory import DirectoryBackend
    from services.tensorstore.importer import import_checkpoint
    from services.tensorstore.sources.opening import open_source

    def status(field):
        text = Path("/proc/self/status").read_text()
        return int(text.partition(field + ":")[2].split()[0]) * 1024

    warm, real = Path(sys.argv[2]), Path(sys.argv[1])
    store = DirectoryBackend(Path(sys.argv[3]))
    import_checkpoint(open_source(warm), store, "warm")
    idle = status("VmRSS")
    import_checkpoint(open_source(real), store, "real")
    print(status("VmHWM") - idle)
"""


def test_an_import_holds_no_more_than_two_of_the_largest_tensor(tiny, tmp_path: Path) -> None:
    config = make_config(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=6, vocab_size=1024
    )
    largest = 2048 * 8192 * 2
    source = tmp_path / "large"
    write_checkpoint(source, config, {})
    tensors = make_tensors(config)
    save_file(tensors, source / "model-00001-of-00001.safetensors")
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert total > 15 * largest
    del tensors
    command = [sys.executable, "-c", textwrap.dedent(MEASURED)]
    command += [str(source), str(tiny.source), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    assert int(done.stdout) <= 2 * largest
    assert (
        upkeep.verify(
            DirectoryBackend(tmp_path / "store"),
            open_store(str(tmp_path / "store")).model("real").digest,
        )
        == []
    )


@pytest.mark.parametrize("kind", ["the default model", "a larger one"])
def test_an_import_of_a_gguf_file_holds_no_more_either(tiny, tmp_path: Path, kind: str) -> None:
    source, largest = default_source(), 49152 * 576 * 2
    if kind == "a larger one":
        config = make_config(
            hidden_size=2048,
            intermediate_size=8192,
            num_attention_heads=16,
            num_key_value_heads=16,
            head_dim=128,
            vocab_size=1024,
        )
        source, largest = write_gguf(tmp_path / "large.gguf", config), 2048 * 8192 * 2
    command = [sys.executable, "-c", textwrap.dedent(MEASURED)]
    command += [str(source), str(tiny.source), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    assert int(done.stdout) <= 2 * largest


def test_a_source_that_shrinks_in_mid_import_is_data_loss(tiny) -> None:
    checkpoint = open_source(tiny.source)
    file = next(tiny.source.glob("*.safetensors"))
    with file.open("r+b") as shrinking:
        shrinking.truncate(file.stat().st_size // 2)
    with pytest.raises(DataLoss, match="shorter"):
        importer.import_checkpoint(checkpoint, tiny.backend, "tiny")
    checkpoint.close()
    assert tiny.model().digest == tiny.imported.digest


@pytest.mark.parametrize("what", ["weight_scale", "input_scale", "weight_scale_inv", "qweight"])
def test_a_checkpoint_whose_weights_need_scales_is_refused_as_such(tiny, what: str) -> None:
    scale = {f"model.layers.0.mlp.up_proj.{what}": torch.ones(1)}
    write_checkpoint(tiny.source, tiny.config, tiny.tensors | scale)
    with pytest.raises(InvalidArgument, match=f"{what} belongs to quantised weights"):
        tiny.store("other")


def test_a_number_that_is_not_finite_is_refused_before_anything_is_written(
    tiny, tmp_path: Path
) -> None:
    text = json.dumps(tiny.config)[:-1] + ', "factor": 1e999}'
    (tiny.source / "config.json").write_text(text)
    backend = DirectoryBackend(tmp_path / "fresh")
    with pytest.raises(InvalidArgument, match="config"):
        run_import(backend, tiny.source, "tiny")
    assert list(backend.objects()) == []


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_mutant_of_a_config_crashes_an_import(tmp_path_factory, seed: int) -> None:
    root, config = tmp_path_factory.getbasetemp() / "configs", make_config(num_hidden_layers=1)
    source = root / "source"
    if not source.exists():
        write_checkpoint(source, config, make_tensors(config))
    text = json.dumps(mutate_json(config, random.Random(seed)))
    (source / "config.json").write_text(text)
    backend = DirectoryBackend(root / "store")
    with suppress(ShuntError):
        done = run_import(backend, source, "mutant")
        assert read_manifest(backend, done.digest)[1].config == json.loads(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"note": "x" * (5 << 20)},
        {"architectures": ["MixtralForCausalLM"]},
        {"num_attention_heads": 0},
        {"num_attention_heads": "8"},
        {"num_key_value_heads": 3},
        {"num_hidden_layers": 10**6},
        {"vocab_size": 65},
    ],
)
def test_a_config_that_does_not_fit_is_refused(tiny, changes: dict[str, object]) -> None:
    (tiny.source / "config.json").write_text(json.dumps(tiny.config | changes))
    with pytest.raises(InvalidArgument):
        tiny.store("other")
    assert tiny.backend.names() == ["tiny"]


@pytest.mark.parametrize("shape", [(32, 32, 1), (32, 8, 4), (1, 8, 128)])
def test_a_tensor_of_another_shape_is_refused_before_anything_is_written(
    tiny, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    write_checkpoint(tiny.source, tiny.config, tiny.tensors | {name: torch.zeros(shape)})
    backend = DirectoryBackend(tmp_path / "fresh")
    with pytest.raises(InvalidArgument, match=r"config\.json asks for"):
        run_import(backend, tiny.source, "tiny")
    assert list(backend.objects()) == []


def test_no_name_ever_leads_to_a_manifest_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal bytes that are cut in different ways would be one chunk with two sets of tiles."""
    monkeypatch.setattr(importer, "OWN_CHUNK_BYTES", 1)
    config = make_config(intermediate_size=8)
    tensors = make_tensors(config)
    for part in ("self_attn.k_proj", "mlp.up_proj"):
        tensors[f"model.layers.0.{part}.weight"] = torch.zeros(8, 32, dtype=torch.bfloat16)
    backend = DirectoryBackend(tmp_path / "store")
    with pytest.raises(DataLoss, match="one digest"):
        run_import(backend, write_checkpoint(tmp_path / "a", config, tensors), "a")
    assert backend.names() == []
