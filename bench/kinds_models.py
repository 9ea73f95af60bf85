"""Models that write calls and thoughts in the forms that there are, and what is asked of each.

They are one tiny model with random weights under several chat templates: which form an answer has
follows from the template. What it says means nothing, and where a grammar is to be followed it
follows it; its engines start as soon as they can be killed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken

from bench import kinds_asked as asked
from bench.kinds_asked import Kind
from services.model.answer_tags import THINK_END, TOOL_CALL, TOOL_CALLS
from tests.families import TEMPLATES
from tests.mesh import tiny_mesh
from tests.tiny_model import CHAT_TEMPLATE, model_files, tiny_tokenizer

SIZE = 3
POSITIONS = 3072
"""Of a prompt with tools, of which the tiny tokenizer makes a thousand tokens, and an answer."""
TAG = {"292": 2.0}
"""The one token behind those of the tiny tokenizer."""
END = {"290": -2.0}
BRACE = {"90": -100.0}
SCHEMAS = tuple(number for number in range(25) if number not in (1, 2, 4, 8, 14))
"""Twenty, whose answers the random model ends within what it may say."""


@dataclass(frozen=True)
class Sort:
    """A model's files and what is asked of it."""

    kinds: Mapping[str, Kind]
    template: str = CHAT_TEMPLATE
    tag: str = ""
    """What is a token of its own."""

    @property
    def files(self) -> dict[str, bytes]:
        """Tokenizer and settings."""
        tokenizer = tiny_tokenizer()
        if self.tag:
            tokenizer.add_tokens([AddedToken(self.tag)])
        settings = {
            "chat_template": self.template,
            "bos_token": "<|endoftext|>",
            "eos_token": "<|im_end|>",
        }
        return model_files(tokenizer) | {"tokenizer_config.json": json.dumps(settings).encode()}

    async def store(self, directory: Path) -> Path:
        """A store that has the model."""
        store = directory / "store"
        model = tiny_mesh.reference(max_position_embeddings=POSITIONS)
        await tiny_mesh.import_model(model, directory / "source", store, self.files)
        return store


def _template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text()


_INST = _template("tools_inst")
SORTS: Mapping[str, Sort] = {
    "plain": Sort({**asked.plain(SIZE), **asked.schemas(SCHEMAS), **asked.kept(SIZE)}),
    "hermes": Sort(asked.calls(SIZE, END, TAG), _template("tools_hermes"), TOOL_CALL),
    "llama": Sort(
        {**asked.calls(SIZE, END), **asked.pythonic(BRACE)},
        _template("tools_headers").replace("tojson(indent=4)", "tojson"),
    ),
    "mistral": Sort(asked.calls(SIZE, END, TAG), _INST, TOOL_CALLS),
    "mistral, arguments apart": Sort(
        asked.calls(SIZE, END, TAG), f"{_INST}{{# [TOOL_CALLS]name[ARGS] #}}", TOOL_CALLS
    ),
    "thinks": Sort(asked.thoughts(SIZE, TAG), _template("chatml_thinks_when_asked"), THINK_END),
}
PIPELINES = 4
NAME = tiny_mesh.NAME
OPTIONS = ("--model", NAME, "--node-speeds", ",".join("1" * PIPELINES))
