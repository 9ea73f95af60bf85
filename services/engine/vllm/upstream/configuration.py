"""How vLLM is told what it is to run: a model, a device, and the ranks that share its layers."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import vllm
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm.config import VllmConfig
from vllm.distributed import parallel_state
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models.registry import ModelRegistry, _LazyRegisteredModel

from services.common.errors import InvalidArgument
from services.engine.backend import BLOCK_SIZE, HiddenDtype
from services.model.vllm_quantisation import Device

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_NAMES = {"bf16": "bfloat16", "fp32": "float32"}
SHARED_MEMORY = Path("/dev/shm")
LEAST_ROWS = 2048
"""Room for the rows of a step, at least, that vLLM is made for."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which rank of how many this process is, for all of its stages."""

    rank: int = 0
    size: int = 1
    meet_at: str = ""
    """file:///PATH, new for each group, or tcp://HOST:PORT; one rank alone needs none."""
    name: str = "alone"
    """Of the shared memory that they add up in: one for each group of a host."""


@dataclass(frozen=True, slots=True)
class Options:
    """How stages of this process compute."""

    dtype: HiddenDtype = "bf16"
    device: str = "cpu"
    ranks: Ranks = Ranks()
    max_rows: int = LEAST_ROWS
    max_sequences: int = 64


class Place(threading.local):
    """Stands where vLLM has its group of pipeline ranks: models ask it at every build and at every
    step which part of the model they are. Each thread has the part that it is at work on."""

    rank_in_group, world_size = 0, 1

    @property
    def rank(self) -> int:
        return self.rank_in_group

    @property
    def is_first_rank(self) -> bool:
        return self.rank_in_group == 0

    @property
    def is_last_rank(self) -> bool:
        return self.rank_in_group == self.world_size - 1

    def destroy(self) -> None:
        """As a group is, when its process ends."""

    @contextmanager
    def at(self, rank: int, size: int) -> Iterator[None]:
        before = self.rank_in_group, self.world_size
        self.rank_in_group, self.world_size = rank, size
        try:
            yield
        finally:
            self.rank_in_group, self.world_size = before


PLACE = Place()


@dataclass(frozen=True, slots=True)
class Shape:
    """What a config says of a model, before any of it is built."""

    layer_count: int
    vocab_size: int
    context_length: int
    kv_block_bytes: int
    """Of one block of one layer, at one rank."""


def shape(hf_config: Mapping[str, Any], options: Options) -> Shape:
    """Raises InvalidArgument for a model that vLLM cannot run."""
    config = configuration(hf_config, options)
    model = config.model_config
    heads = model.get_num_kv_heads(config.parallel_config)
    numbers = 2 * heads * model.get_head_size() * BLOCK_SIZE
    return Shape(
        layer_count=model.hf_text_config.num_hidden_layers,
        vocab_size=model.get_vocab_size(),
        context_length=model.max_model_len,
        kv_block_bytes=numbers * DTYPES[options.dtype].itemsize,
    )


def _named(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """With the class that computes it, which a config may leave to its type: vLLM would take the
    class without a head then."""
    known = hf_config.get("architectures")
    return {
        **hf_config,
        "architectures": known or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[hf_config["model_type"]]],
    }


def _look_at(architectures: Sequence[str]) -> None:
    """Has vLLM look at a model's class here, where it is needed anyway: left alone, it starts a
    process for that, which imports for seconds."""
    for name in architectures:
        known = ModelRegistry.models.get(name)
        if isinstance(known, _LazyRegisteredModel):
            ModelRegistry.register_model(name, known.load_model_cls())


def configuration(hf_config: Mapping[str, Any], options: Options) -> VllmConfig:
    """vLLM's own, for a pipeline that is this stage alone."""
    ranks = options.ranks
    with TemporaryDirectory(prefix="shunt-vllm-") as folder:
        try:
            named = _named(hf_config)
            Path(folder, "config.json").write_text(json.dumps(named))
            _look_at(named["architectures"])
            return EngineArgs(
                model=folder,
                skip_tokenizer_init=True,
                dtype=_NAMES[options.dtype],
                load_format="dummy",
                enforce_eager=True,
                block_size=BLOCK_SIZE,
                max_num_seqs=options.max_sequences,
                max_num_batched_tokens=max(options.max_rows, LEAST_ROWS),
                tensor_parallel_size=ranks.size,
                enable_prefix_caching=False,
                kv_cache_memory_bytes=1 << 30,  # so that it does not look at memory; ours is ours
                distributed_executor_backend="mp" if ranks.size > 1 else "external_launcher",
            ).create_engine_config()
        except Exception as error:  # many libraries look at a config, each with errors of its own
            raise refusal(error) from error


def refusal(error: BaseException) -> InvalidArgument:
    """In one line, what vLLM said of a model."""
    said = " ".join(str(error).split()) or type(error).__name__
    return InvalidArgument(
        f"vLLM {vllm.__version__} cannot run this model: {said[:300]}", field="model"
    )


def join(ranks: Ranks, device: torch.device) -> None:
    """The group that a layer is shared by, once a process. The configuration in use is set."""
    if parallel_state.model_parallel_is_initialized():
        return
    os.environ["VLLM_DIST_IDENT"] = ranks.name  # not that of an engine that holds a stage alone
    with TemporaryDirectory(prefix="shunt-vllm-") as folder:
        meet_at = ranks.meet_at or f"file://{folder}/group"
        backend = "gloo" if device.type == "cpu" else "nccl"
        parallel_state.init_distributed_environment(
            ranks.size, ranks.rank, meet_at, ranks.rank, backend
        )
        parallel_state.initialize_model_parallel(ranks.size, 1)
    # Made only where the process' first model has experts, and the next one may have some, too: it
    # is of the same ranks.
    parallel_state._EP = parallel_state._EP or parallel_state.get_tp_group()
    if ranks.size > 1 and device.type == "cpu":
        # All have it open: without a name it goes with them, also when they are killed.
        parallel_state.get_tp_group().barrier()
        for memory in SHARED_MEMORY.glob(f"{ranks.name}-*"):
            memory.unlink(missing_ok=True)
    parallel_state._PP = PLACE  # private, as above: the patch that makes a stage of a process


def prepare(options: Options) -> None:
    """What vLLM's workers would see to, for the device."""
    if options.device == "cpu":
        from vllm.v1.worker.cpu_model_runner import _set_torch_accelerator_to_noop

        _set_torch_accelerator_to_noop()
        return
    if parallel_state.model_parallel_is_initialized():
        return  # for all stages of the process
    from vllm.v1.worker.workspace import init_workspace_manager

    torch.cuda.set_device(options.device)
    parallel_state.set_custom_all_reduce(True)
    init_workspace_manager(torch.device(options.device), 1, 1)


def kind_of(device: str) -> Device:
    """Which of its kernels vLLM has for a device."""
    if device != "cpu":
        return "GPU"
    return "CPU" if torch.cpu._is_amx_tile_supported() else "CPU without AMX"


def machine(device: torch.device) -> str:
    """What of it decides the bits of a row."""
    if device.type == "cpu":
        return f"cpu-{torch.backends.cpu.get_cpu_capability()}"
    name = torch.cuda.get_device_name(device).replace(" ", "_")
    return f"cuda{torch.version.cuda}-{name}"
