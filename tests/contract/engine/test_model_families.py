"""Every family that the native backend serves says what transformers says, on the way that a model
goes: saved, imported, stored, loaded as two stages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from services.common.generation import LayerRange, ModelRef, Sampling
from services.common.nodes import StageSpec
from services.engine.backend import Batch, Hidden, HiddenDtype, SequenceOpen, SequenceStep
from services.engine.native.loader import NativeLoader, NativeOptions
from services.engine.native.stage import NativeStage
from services.engine.stage.spans import Span
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import open_source
from tests.model_families import MODELS, WINDOW, random_model, save

pytest.importorskip("transformers")
PROMPT = [(37 * i * i + 11 * i) % 300 for i in range(3 * WINDOW)]
CUTS = (0, 50, 51, len(PROMPT))
COUNT = 24
TIE = 0.02
"""Of the largest logit: what bf16 does not tell apart behind five layers."""
TABLE = [3, 9, 4, 0, 7, 1, 10, 8, 2]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _generate(stages: list[NativeStage]) -> list[int]:
    """Greedy ids: the prompt in chunks, and one row after another."""
    opens = [SequenceOpen(0, Sampling(COUNT, temperature=0.0), 0, PROMPT)]
    ids, outputs, start = list(PROMPT), [], 0
    ends = [*CUTS[1:], *range(len(PROMPT) + 1, len(PROMPT) + COUNT)]
    for end in ends:
        blocks = TABLE[: -(-end // 16)]
        step = SequenceStep(0, start, end - start, blocks, sample=end >= len(PROMPT))
        rows: Any = ids[start:end]
        for stage in stages:
            rows = stage.forward(Batch([step], opens), rows)
            assert not isinstance(rows, Hidden) or rows.rows == end - start
        ids += (found := [sampled.token_id for sampled in rows])
        outputs += found
        opens, start = [], end
    return outputs


def _logits(stages: list[NativeStage], ids: list[int]) -> torch.Tensor:
    """Of all rows at once."""
    rows = stages[0]._embed(ids)
    for stage in stages:
        assert stage._arithmetic is not None
        rows = stage._arithmetic.forward(rows, [Span(0, len(ids), 0, TABLE)])
    assert stages[-1]._arithmetic is not None
    return stages[-1]._arithmetic.logits(rows)


@contextlib.contextmanager
def _loaded(store: Path, digest: str, dtype: HiddenDtype, layers: int) -> Iterator[Any]:
    loader = NativeLoader(NativeOptions(str(store), dtype, "cpu", 1, None))
    ranges = (LayerRange(0, 2), LayerRange(2, layers))
    stages: list[Any] = []
    try:
        for layer_range in ranges:
            stages.append(
                loader.load(ModelRef("m", digest), StageSpec(layer_range), lambda *_: None)
            )
            stages[-1].begin(len(TABLE) + 2)
        yield stages
    finally:
        for stage in stages:
            stage.close()


@pytest.mark.parametrize("name", MODELS)
def test_a_family_says_what_transformers_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = random_model(name)
    store = tmp_path / "store"
    with contextlib.closing(open_source(save(reference, tmp_path / "source"))) as checkpoint:
        digest = import_checkpoint(checkpoint, DirectoryBackend(store), "m").digest
    layers = reference.config.num_hidden_layers

    def theirs(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = reference(torch.tensor([ids])).logits[0].float()
        return logits

    with _loaded(store, digest, "bf16", layers) as stages:
        assert all(stage.facts.exact for stage in stages)
        said = _generate(stages)
    narrow = theirs([*PROMPT, *said])[len(PROMPT) - 1 : -1]
    best = narrow.argmax(1)
    lost = narrow.max(1).values - narrow[torch.arange(COUNT), said]
    assert (lost <= TIE * narrow.abs().max()).all()
    assert (best == torch.tensor(said)).sum() >= COUNT * 0.8

    reference = reference.float()
    spoken: set[tuple[int, ...]] = set()
    for arithmetic in ("auto", "torch"):
        if arithmetic == "torch":
            monkeypatch.setattr("services.engine.native.kernels.load", lambda *_: None)
        with _loaded(store, digest, "fp32", layers) as stages:
            assert all(stage.facts.exact for stage in stages)
            assert ("torch" in stages[0].facts.numerics_class) == (arithmetic == "torch")
            said = _generate(stages)
            ours = _logits(stages, [*PROMPT, *said])
        expected = theirs([*PROMPT, *said])
        assert (ours - expected).abs().max() < 4e-5 * expected.abs().max()
        assert expected[len(PROMPT) - 1 : -1].argmax(1).tolist() == said
        spoken.add(tuple(said))
    assert len(spoken) == 1
