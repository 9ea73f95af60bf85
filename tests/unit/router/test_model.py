from __future__ import annotations

import json

import pytest

from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.generation import SAMPLING, GenerationKind
from services.model.chat import Message
from services.router.ask import Ask, Drawn
from services.router.grammar_checks import GrammarChecks
from services.router.model import ServedModel
from services.router.model_files import ModelFiles
from tests.tiny_model import CHAT_TEMPLATE, MODEL, model_files, tiny_tokenizer

CONFIG = {"model_type": "llama", "max_position_embeddings": 64, "vocab_size": 303}
START, END = (tiny_tokenizer().token_to_id(text) for text in ("<|im_start|>", "<|im_end|>"))
DRAWN = Drawn("g1", 77, 1234)


def _model(**files: object) -> ServedModel:
    contents = model_files(tiny_tokenizer())
    for name, value in files.items():
        key = name.replace("_json", ".json")
        if value is None:
            contents.pop(key)
        else:
            contents[key] = json.dumps(value).encode()
    return ServedModel(ModelFiles(MODEL, CONFIG, contents), GrammarChecks())


def _ask(**more: object) -> Ask:
    options = {name: more.pop(name) for name in SAMPLING if name in more}
    values = {"kind": GenerationKind.COMPLETION, "prompt": (1, 2, 3), "options": options, **more}
    return Ask(model="tiny", **values)  # type: ignore[arg-type]


def test_what_is_absent_takes_the_models_default() -> None:
    model = _model(generation_config_json={"eos_token_id": [5, 6], "temperature": 0.5, "top_k": 20})
    request = _ask().resolve(model.facts, [1, 2, 3], DRAWN)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 20, 1.0)
    assert (sampling.eos_token_ids, sampling.seed, sampling.max_tokens) == ((5, 6, END), 77, 61)
    assert (request.generation_id, request.created_unix_s) == ("g1", 1234)
    chosen = _ask(temperature=0.0, top_k=-1, seed=-1).resolve(model.facts, [1], DRAWN).sampling
    assert (chosen.temperature, chosen.top_k, chosen.seed) == (0.0, 0, (1 << 64) - 1)


def test_values_are_rounded_as_the_wire_will_carry_them() -> None:
    sampling = _ask(temperature=0.9).resolve(_model().facts, [1], DRAWN).sampling
    assert sampling.temperature == pytest.approx(0.9)
    assert sampling.temperature != 0.9


def test_prompt_and_output_fit_the_context_together() -> None:
    facts = _model().facts
    assert _ask(max_tokens=61).resolve(facts, [1, 2, 3], DRAWN).sampling.max_tokens == 61
    assert _ask(most_tokens=16).resolve(facts, [1] * 60, DRAWN).sampling.max_tokens == 4
    with pytest.raises(InvalidArgument) as refused:
        _ask(max_tokens=62).resolve(facts, [1, 2, 3], DRAWN)
    assert refused.value.field == "max_tokens"
    with pytest.raises(InvalidArgument):
        _ask().resolve(facts, [1] * 64, DRAWN)
    with pytest.raises(InvalidArgument):
        _ask().resolve(facts, [], DRAWN)


@pytest.mark.parametrize(
    ("kind", "prompt"),
    [
        (GenerationKind.COMPLETION, "é" * 120),
        (GenerationKind.COMPLETION, (1,) * 20),
        (GenerationKind.CHAT, (Message("user", "é" * 60), Message("user", "é" * 60))),
    ],
)
def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenised(
    kind: GenerationKind, prompt: object
) -> None:
    _ask(kind=kind, prompt=prompt).check_size(21, 12)
    with pytest.raises(InvalidArgument) as refused:
        _ask(kind=kind, prompt=prompt).check_size(20, 12)
    assert refused.value.field in ("prompt", "messages")


@pytest.mark.parametrize(
    ("more", "most"), [({"most_tokens": 16}, 16), ({}, 61), ({"most_tokens": 99}, 61)]
)
def test_min_tokens_lie_within_what_may_come(more: dict[str, int], most: int) -> None:
    facts = _model().facts
    _ask(min_tokens=most, **more).resolve(facts, [1, 2, 3], DRAWN)
    with pytest.raises(InvalidArgument) as refused:
        _ask(min_tokens=most + 1, **more).resolve(facts, [1, 2, 3], DRAWN)
    assert refused.value.field == "min_tokens"


def test_the_longest_piece_of_a_vocabulary_may_be_a_special_token() -> None:
    assert _model().longest_piece_bytes == len("<|endoftext|>")


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        (None, None, (END,)),
        (7, None, (7, END)),
        ([7, 8], 8, (7, 8, END)),
        (7, [9, 303], (7, 9, END)),
        ([303, 7, -1], None, (7, END)),
        (END, END, (END,)),
    ],
)
def test_every_end_that_any_file_names_ends_a_sequence(
    generation: object, config: object, ends: tuple[int, ...]
) -> None:
    contents = model_files(tiny_tokenizer())
    contents["generation_config.json"] = json.dumps({"eos_token_id": generation}).encode()
    model = ServedModel(
        ModelFiles(MODEL, {**CONFIG, "eos_token_id": config}, contents), GrammarChecks()
    )
    assert model.facts.eos_token_ids == ends


@pytest.mark.parametrize("end", ["7", 7.0, True, [[7]], {"id": 7}])
def test_an_end_that_is_no_id_is_refused(end: object) -> None:
    with pytest.raises(FailedPrecondition, match="eos_token_id: must be an id"):
        _model(generation_config_json={"eos_token_id": end})


def test_a_model_without_an_end_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="eos_token"):
        _model(generation_config_json={"eos_token_id": 303}, tokenizer_config_json={})


def test_a_stop_string_that_is_a_special_token_stops_by_its_id() -> None:
    ask = _ask(stop_strings=("<|im_start|>", "stop", "<|im_end|>"), stop_token_ids=(START, 5))
    request = ask.resolve(_model().facts, [1], DRAWN)
    assert request.sampling.stop_token_ids == (START, 5, END)
    assert request.stop_strings == ("<|im_start|>", "stop", "<|im_end|>")


@pytest.mark.parametrize(
    "default",
    [{"top_k": float("nan")}, {"top_k": 2**40}, {"temperature": 1e300}, {"top_p": 2}],
)
def test_a_default_that_no_client_may_ask_for_is_refused(default: dict[str, float]) -> None:
    with pytest.raises(FailedPrecondition):
        _model(generation_config_json={"eos_token_id": 5, **default})


def test_a_model_without_a_template_takes_no_chat() -> None:
    model = _model(tokenizer_config_json={"eos_token": "<|im_end|>"})
    ask = _ask(kind=GenerationKind.CHAT, prompt=(Message("user", "x"),))
    with pytest.raises(InvalidArgument):
        model.prompt(ask, 0)


def test_one_of_several_templates_is_the_default() -> None:
    named = [{"name": "tool", "template": "x"}, {"name": "default", "template": CHAT_TEMPLATE}]
    model = _model(tokenizer_config_json={"chat_template": named, "eos_token": "<|im_end|>"})
    ask = _ask(kind=GenerationKind.CHAT, prompt=(Message("user", "x"),))
    assert model.prompt(ask, 0).ids[0] == START


def test_a_text_prompt_may_hold_special_tokens() -> None:
    assert START in _model().prompt(_ask(prompt="<|im_start|>user"), 0).ids


@pytest.mark.parametrize("prompt", ["the capital of France", (Message("user", "the capital"),)])
def test_a_tokenizer_file_neither_cuts_nor_pads_a_prompt(prompt: object) -> None:
    kind = GenerationKind.COMPLETION if isinstance(prompt, str) else GenerationKind.CHAT
    ask = _ask(kind=kind, prompt=prompt)
    cutting, padding = tiny_tokenizer(), tiny_tokenizer()
    cutting.enable_truncation(2)
    padding.enable_padding(length=32)
    for tokenizer in (cutting, padding):
        model = _model(tokenizer_json=json.loads(tokenizer.to_str()))
        assert model.prompt(ask, 0).ids == _model().prompt(ask, 0).ids


TOKENIZER = json.loads(tiny_tokenizer().to_str())


def _renumbered(token_id: int) -> object:
    """The tokenizer file, its last token moved to another id."""
    vocabulary = TOKENIZER["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    return {**TOKENIZER, "model": {**TOKENIZER["model"], "vocab": {**vocabulary, last: token_id}}}


def test_a_vocabulary_with_holes_has_all_its_pieces() -> None:
    piece = _model().vocabulary.piece(max(TOKENIZER["model"]["vocab"].values()))
    vocabulary = _model(tokenizer_json=_renumbered(500)).vocabulary
    assert (vocabulary.piece(499), vocabulary.piece(500)) == (b"", piece)
    with pytest.raises(FailedPrecondition):
        _model(tokenizer_json=_renumbered(1 << 31))


def test_a_tokenizer_file_that_its_library_panics_over_is_refused() -> None:
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    with pytest.raises(FailedPrecondition):
        _model(tokenizer_json={**TOKENIZER, "normalizer": charsmap})


@pytest.mark.parametrize("field", ["prompt", "messages"])
def test_a_prompt_that_a_tokenizer_fails_on_is_refused(field: str) -> None:
    words = {"type": "WordLevel", "vocab": {"hi": 0}, "unk_token": "nowhere"}
    model = _model(
        tokenizer_json={**TOKENIZER, "model": words, "added_tokens": []},
        tokenizer_config_json={"chat_template": CHAT_TEMPLATE},
    )
    kind = GenerationKind.CHAT if field == "messages" else GenerationKind.COMPLETION
    prompt = (Message("user", "ho"),) if field == "messages" else "ho"
    with pytest.raises(InvalidArgument) as refused:
        model.prompt(_ask(kind=kind, prompt=prompt), 0)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "broken",
    [
        {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}},
        {"model": {"type": "BPE", "vocab": {}, "merges": [], "unk_token": "nowhere"}},
    ],
)
def test_a_tokenizer_file_that_cannot_encode_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(FailedPrecondition, match="model: cannot encode"):
        _model(tokenizer_json={**TOKENIZER, **broken})


def test_a_token_that_the_model_has_no_row_for_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(["<pad>"] + [f"<{number}>" for number in range(20)])
    model = _model(tokenizer_json=json.loads(tokenizer.to_str()))
    with pytest.raises(InvalidArgument) as refused:
        model.prompt(_ask(prompt="so <19>"), 0)
    assert refused.value.field == "prompt"


@pytest.mark.parametrize(
    "files", [{"tokenizer_json": None}, {"tokenizer_json": {}}, {"tokenizer_config_json": []}]
)
def test_files_that_cannot_be_used_are_refused(files: dict[str, object]) -> None:
    with pytest.raises(FailedPrecondition):
        _model(**files)
