"""A mesh of a tiny model, some of whose engines can be made to fail: as their machine would."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc
from tokenizers import AddedToken

from bench import mesh as meshes
from services.common import channels
from services.common.roles import Role
from services.model.answer_tags import THINK_END
from tests.families import TEMPLATES
from tests.tiny_model import model_files, tiny_tokenizer

NAME = "tiny"
POSITIONS = 1536
"""A sequence of placement's default workload has 995."""
WINDOW = 40
LIMIT = {"max_position_embeddings": POSITIONS, "sliding_window": WINDOW}
CONFIG = transformers.MistralConfig(
    hidden_size=384,
    intermediate_size=16,
    num_hidden_layers=4,
    num_attention_heads=12,
    num_key_value_heads=1,
    head_dim=32,
    vocab_size=304,
    tie_word_embeddings=False,
    eos_token_id=301,
    **LIMIT,
)
MACHINE = """
import os
from pathlib import Path

node, settings = "SHUNT_ENGINE_NODE_ID", Path(__file__).with_name("settings")
if node in os.environ and settings.exists():
    os.environ.update(line.split("=", 1) for line in settings.read_text().splitlines())
"""
"""Python runs this before anything else; an engine starts with what a file says at the time."""


class Machine:
    """Where engines start: settings of its own come over those that they are given."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "sitecustomize.py").write_text(MACHINE)
        self._settings = directory / "settings"
        paths = [str(directory), os.environ.get("PYTHONPATH", "")]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def set(self, **settings: str) -> None:
        """From the next start on."""
        lines = (f"SHUNT_ENGINE_{name.upper()}={value}\n" for name, value in settings.items())
        written = self._settings.with_suffix(".new")
        written.write_text("".join(lines))
        written.replace(self._settings)

    def heal(self) -> None:
        """Nothing of its own any more."""
        self._settings.unlink(missing_ok=True)


def reference(**more: int) -> transformers.MistralForCausalLM:
    """The model with random weights, far enough apart for an answer that no rounding changes;
    `more` stands in its configuration instead."""
    torch.manual_seed(11)
    config = transformers.MistralConfig.from_dict(CONFIG.to_dict() | more)
    model = transformers.MistralForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 1.0 if "embed" in name else 0.08)
    return model


def greedy(model: transformers.MistralForCausalLM, ids: list[int], count: int) -> list[int]:
    """What transformers says, whatever ends an answer."""
    model.generation_config.eos_token_id = None
    given, threads = torch.tensor([ids]), torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for cores which engines have take seconds
    try:
        answer = model.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=count
        )
    finally:
        torch.set_num_threads(threads)
    return answer[0, len(ids) :].tolist()


def thinking_files() -> dict[str, bytes]:
    """Files of a model that thinks where it is asked to: its template opens the thoughts, and what
    ends them is a token."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(THINK_END)])
    template = (TEMPLATES / "chatml_thinks_when_asked.jinja").read_text()
    settings = {"chat_template": template, "eos_token": "<|im_end|>"}
    return model_files(tokenizer) | {"tokenizer_config.json": json.dumps(settings).encode()}


async def import_model(
    model: transformers.MistralForCausalLM,
    source: Path,
    store: Path,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Stores it with these files, else with the tiny tokenizer."""
    model.save_pretrained(source)
    for name, content in (files or model_files(tiny_tokenizer())).items():
        (source / name).write_bytes(content)
    await meshes.run_shunt(
        *("model", "import", str(source), "--name", NAME, "--store", str(store)), timeout_s=60
    )


class Up:
    """`shunt up` in the foreground, as somebody at a terminal sees it."""

    def __init__(self, data_dir: Path, *, pipelines: int = 2) -> None:
        first = meshes.free_ports(2)
        self.mesh = meshes.Mesh(data_dir, http_port=first, grpc_port=first + 1, routers=1)
        self._pipelines = pipelines
        self._said = b""

    @asynccontextmanager
    async def running(self, env: Mapping[str, str]) -> AsyncIterator[Up]:
        """Ended with the block."""
        terminal, inner = os.openpty()
        loop = asyncio.get_running_loop()
        loop.add_reader(terminal, self._read, terminal)
        mesh = self.mesh
        try:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services.cli", "up", "--data-dir", str(mesh.data_dir)),
                *("--model", NAME, "--node-speeds", ",".join("1" * self._pipelines)),
                *("--http-port", str(mesh.http_port), "--grpc-port", str(mesh.grpc_port)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=inner,
                stderr=inner,
                env={**env, "COLUMNS": "400", "TERM": "xterm"},
            )
            yield self
        finally:
            if self.process.returncode is None:
                self.process.terminate()
            await self.process.wait()
            loop.remove_reader(terminal)
            os.close(terminal)
            os.close(inner)

    def _read(self, terminal: int) -> None:
        self._said += os.read(terminal, 1 << 16)

    @property
    def said(self) -> str:
        """Everything it has printed, without the terminal's own codes."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._said.decode(errors="replace"))


async def events(mesh: meshes.Mesh) -> list[controller_pb2.WatchEventsResponse]:
    """What the controller has logged so far."""
    services = (await mesh.status())["services"]
    address = next(s["grpc"] for s in services if s["name"] == "controller")
    async with channels.open_channel(address, Role.CONTROLLER) as channel:
        return await events_of(controller_pb2_grpc.ControllerServiceStub(channel))


async def events_of(controller: Any) -> list[controller_pb2.WatchEventsResponse]:
    """The same, of a controller that is called already."""
    request = controller_pb2.WatchEventsRequest(no_wait=True)
    return [event async for event in controller.WatchEvents(request, timeout=60)]


async def launches(mesh: meshes.Mesh) -> list[controller_pb2.WatchEventsResponse]:
    """The launches among them."""
    return [event for event in await events(mesh) if event.kind == "node_launched"]


async def until_status(mesh: meshes.Mesh, holds: Any, within_s: float = 60.0) -> dict[str, Any]:
    """The first status of which a condition holds; TimeoutError when none comes."""
    async with asyncio.timeout(within_s):
        while True:
            status = await mesh.status()
            if holds(status):
                return status
            await asyncio.sleep(0.1)
