"""A damaged GGUF model is refused before a weight is written, or is what transformers reads."""

from __future__ import annotations

import collections
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from services.common.errors import InvalidArgument
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.gguf.checkpoint import GgufCheckpoint
from services.tensorstore.sources.opening import open_source
from tests.gguf_models import GgufModel
from tests.gguf_mutants import Mutant, mutant, sound_gemmas, sound_models

COUNT = 400
CHUNKS = 8
GEMMAS = 120
TEXTS = ("the river is", " they'll  say 1984\n", "<s>façade<|im_end|> 日本語")
CONFIG = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_mutant_is_refused_by_key_or_is_what_transformers_reads(
    tmp_path: Path, chunk: int
) -> None:
    refusals = _refusals(sound_models(), range(chunk, COUNT, CHUNKS), tmp_path)
    assert 10 < refusals < COUNT / CHUNKS


def test_a_gemmas_mutant_is_refused_by_key_or_is_what_transformers_reads(tmp_path: Path) -> None:
    assert GEMMAS / 2 < _refusals(sound_gemmas(), range(GEMMAS), tmp_path) < 0.8 * GEMMAS


def _refusals(models: tuple[GgufModel, ...], seeds: range, tmp_path: Path) -> int:
    """How many of the mutants are refused; the others are checked."""
    fields: collections.Counter[str] = collections.Counter()
    for seed in seeds:
        directory = tmp_path / str(seed)
        directory.mkdir()
        made = mutant(models, directory, seed)
        error = _imported_or_refused(made, directory)
        if error is None:
            _check_honoured(made, _transformers(made.path))
        else:
            fields[error.field] += 1
    print(f"refused {dict(fields)}")
    return fields.total()


def test_many_of_the_mutants_that_transformers_reads_are_served(tmp_path: Path) -> None:
    models = sound_models()
    read = served = 0
    for seed in range(COUNT, COUNT + 100):
        directory = tmp_path / str(seed)
        directory.mkdir()
        made = mutant(models, directory, seed)
        if made.what.startswith(("tensor", "part")):
            continue  # they miss neither tensors nor parts
        if _transformers(made.path) is not None:
            read += 1
            served += _imported_or_refused(made, directory) is None
    print(f"transformers reads {read}, served {served}")
    assert served >= 0.4 * read > 10


def _imported_or_refused(made: Mutant, directory: Path) -> InvalidArgument | None:
    store = directory / "store"
    try:
        with closing(open_source(made.path)) as checkpoint:
            import_checkpoint(checkpoint, DirectoryBackend(store), "x")
    except InvalidArgument as error:
        refused = error
    else:
        return None
    assert refused.field, made
    assert refused.message.startswith("m"), made  # the file's name
    known = not made.key or "." not in refused.field or refused.field in refused.message
    assert known, (made, refused.message)
    assert not list(store.glob("objects/*/*")), made
    return refused


def _transformers(path: Path) -> tuple[Any, Any] | None:
    """Their config and tokenizer of a file, None where they fail on it."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        return config, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception:  # whatever it may be
        return None


def _speeds(rope: Mapping[str, Any]) -> dict[str, float]:
    """Of all layers, or of each kind of them."""
    kinds = {"": rope} if "rope_theta" in rope else rope
    return {kind: each["rope_theta"] for kind, each in kinds.items()}


def _check_honoured(made: Mutant, theirs: tuple[Any, Any] | None) -> None:
    checkpoint = GgufCheckpoint(made.path)
    checkpoint.close()
    ours, tokenizer = checkpoint.config, json.loads(checkpoint.files["tokenizer.json"])
    generation = json.loads(checkpoint.files["generation_config.json"])
    name = made.key.partition(".")[2]
    if name in ("rope.scale_linear", "rope.scaling.factor") and made.value != 1:
        rope = ours["rope_parameters"]
        assert rope.get("full_attention", rope)["factor"] == made.value, made
    elif made.key in ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"):
        assert made.value in generation["eos_token_id"], made
    elif name.endswith("logit_softcapping"):
        assert ours[name] == made.value, made
    elif name == "attention.scale":
        assert ours["query_pre_attn_scalar"] ** -0.5 == pytest.approx(made.value), made
    elif name == "attention.sliding_window_pattern":
        kinds = ["sliding_attention", "full_attention" if made.value == 2 else "sliding_attention"]
        assert ours["layer_types"] == kinds, made
    elif theirs is not None:
        config, encoder = theirs
        for key in CONFIG:
            if made.what.startswith("part") and key == "tie_word_embeddings":
                continue  # they read the first part alone
            if ours[key] is None:
                continue  # they take the family's default for what the file does not say
            assert ours[key] == getattr(config, key), (made, key)
        assert _speeds(ours["rope_parameters"]) == pytest.approx(_speeds(config.rope_parameters))
        own = Tokenizer.from_str(json.dumps(tokenizer))
        for text in TEXTS:
            assert own.encode(text).ids == encoder(text)["input_ids"], (made, text)
