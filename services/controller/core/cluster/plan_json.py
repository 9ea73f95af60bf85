"""A plan as JSON: the one form in which it is kept, shown and given.

The form has a version; unknown keys are refused, so that a slip of the pen is no wish.
"""

from __future__ import annotations

import json
from typing import Any

from services.common.errors import InvalidArgument
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import NodeShape
from services.common.phases import PipelinePhase
from services.controller.core.cluster.plan import (
    ANY_SHAPE,
    THROUGHPUT,
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.cluster.why import Alternative, Why

VERSION = 1
MAX_BYTES = 4 << 20


def plan_to_json(plan: Plan) -> str:
    """One line, keys sorted."""
    return json.dumps(
        {
            "version": VERSION,
            "number": plan.number,
            "deployments": [_deployment_to(deployment) for deployment in plan.deployments],
            "why": _why_to(plan.why),
        },
        sort_keys=True,
    )


def plan_from_json(text: str, number: int | None = None) -> Plan:
    """Raises InvalidArgument, naming the field. `number` takes the place of what the text says."""
    if len(text) > MAX_BYTES:
        raise InvalidArgument(f"at most {MAX_BYTES} bytes", field="plan")
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"no JSON: {error}", field="plan") from None
    except RecursionError:
        raise InvalidArgument("no JSON: nested too deep", field="plan") from None
    item = _Item(document, "plan", {"version", "number", "deployments", "why"})
    if item.whole("version", VERSION) != VERSION:
        raise InvalidArgument(f"this program reads version {VERSION}", field="version")
    number = item.whole("number", 1) if number is None else number
    deployments = tuple(_deployment(one) for one in item.items("deployments", _DEPLOYMENT))
    said = item.value("why", None)
    return Plan(number, deployments, Why() if said is None else _why(_Item(said, "why", _WHY)))


_DEPLOYMENT = {"model", "digest", "objective", "pipelines"}
_PIPELINE = {"id", "weight_tokens_per_s", "phase", "onward", "stages"}
_WHOLE = "whole"
"""What plans of before there were phases call a pipeline that does both."""
_STAGE = {"layers", "tp_degree", "node", "offer", "shape"}
_SHAPE = {"memory_bytes", "relative_speed", "device_type", "device_count", "backend"}
_WHY = {"reasons", "alternatives", "causes", "gain", "horizon_s", "adopted_unix_s", "late"}
_ALTERNATIVE = {"plan", "lacks"}


def _deployment_to(deployment: Deployment) -> dict[str, Any]:
    return {
        "model": deployment.model.model_id,
        "digest": deployment.model.digest,
        "objective": deployment.objective,
        "pipelines": [
            {
                "id": pipeline.pipeline_id,
                "weight_tokens_per_s": pipeline.weight_tokens_per_s,
                "phase": pipeline.phase.value,
                **({"onward": dict(pipeline.onward)} if pipeline.onward else {}),
                "stages": [_stage_to(stage) for stage in pipeline.stages],
            }
            for pipeline in deployment.pipelines
        ],
    }


def _stage_to(stage: PlannedStage) -> dict[str, Any]:
    return {
        "layers": [stage.layers.start, stage.layers.end],
        "tp_degree": stage.tp_degree,
        "node": stage.node_id,
        "offer": stage.offer_id,
        "shape": shape_to_json(stage.shape),
    }


def shape_to_json(shape: NodeShape) -> dict[str, Any]:
    return {
        "memory_bytes": shape.memory_bytes,
        "relative_speed": shape.relative_speed,
        "device_type": shape.device_type,
        "device_count": shape.device_count,
        "backend": shape.backend,
    }


def _why_to(why: Why) -> dict[str, Any]:
    return {
        "reasons": list(why.reasons),
        "alternatives": [{"plan": one.plan, "lacks": one.lacks} for one in why.alternatives],
        "causes": list(why.causes),
        "gain": why.gain,
        "horizon_s": why.horizon_s,
        "adopted_unix_s": why.adopted_unix_s,
        **({"late": why.late} if why.late else {}),
    }


def _why(item: _Item) -> Why:
    return Why(
        item.texts("reasons"),
        tuple(
            Alternative(one.text("plan"), one.text("lacks"))
            for one in item.items("alternatives", _ALTERNATIVE)
        ),
        item.texts("causes"),
        item.number_or_none("gain"),
        item.number_or_none("horizon_s"),
        item.number_or_none("adopted_unix_s"),
        item.text("late", ""),
    )


def _deployment(item: _Item) -> Deployment:
    return Deployment(
        ModelRef(item.text("model"), item.text("digest", "")),
        item.text("objective", THROUGHPUT),
        tuple(_pipeline(one) for one in item.items("pipelines", _PIPELINE)),
    )


def _pipeline(item: _Item) -> PlannedPipeline:
    phase = item.text("phase", _WHOLE)
    phase = PipelinePhase.BOTH.value if phase == _WHOLE else phase
    if phase not in list(PipelinePhase):
        raise InvalidArgument(f"one of {', '.join(PipelinePhase)}", field=f"{item.where}.phase")
    return PlannedPipeline(
        item.text("id"),
        tuple(_stage(one) for one in item.items("stages", _STAGE)),
        item.number("weight_tokens_per_s", 1.0),
        PipelinePhase(phase),
        item.numbers("onward"),
    )


def _stage(item: _Item) -> PlannedStage:
    layers = item.value("layers", None)
    whole = isinstance(layers, list) and all(type(one) is int for one in layers)
    if not whole or len(layers) != 2:
        raise InvalidArgument("[first, behind the last]", field=f"{item.where}.layers")
    shape = ANY_SHAPE
    if item.value("shape", None) is not None:
        declared = _Item(item.value("shape", None), f"{item.where}.shape", _SHAPE)
        shape = NodeShape(
            declared.whole("memory_bytes", ANY_SHAPE.memory_bytes),
            declared.number("relative_speed", ANY_SHAPE.relative_speed),
            declared.text("device_type", ANY_SHAPE.device_type),
            declared.whole("device_count", ANY_SHAPE.device_count),
            declared.text("backend", ANY_SHAPE.backend),
        )
    return PlannedStage(
        LayerRange(*layers),
        item.whole("tp_degree", 1),
        shape,
        item.text("node", ""),
        item.text("offer", ""),
    )


class _Item:
    """An object of the document; what is wrong in it is told with its place."""

    def __init__(self, value: Any, where: str, keys: set[str]) -> None:
        self.where = where
        if not isinstance(value, dict):
            raise InvalidArgument("an object", field=where)
        if unknown := sorted(set(value) - keys):
            raise InvalidArgument(f"no such key: {unknown[0]!r}", field=where)
        self._value: dict[str, Any] = value

    def value(self, key: str, default: Any) -> Any:
        return self._value.get(key, default)

    def text(self, key: str, default: str | None = None) -> str:
        return str(self._typed(key, default, (str,), "a string"))

    def whole(self, key: str, default: int) -> int:
        return int(self._typed(key, default, (int,), "a whole number"))

    def number(self, key: str, default: float) -> float:
        found = self._typed(key, default, (int, float), "a number")
        try:
            return float(found)
        except OverflowError:
            raise InvalidArgument("a number of usual size", field=self._inner(key)) from None

    def number_or_none(self, key: str) -> float | None:
        return None if self._value.get(key) is None else self.number(key, 0.0)

    def numbers(self, key: str) -> tuple[tuple[str, float], ...]:
        """By name."""
        found = self._typed(key, {}, (dict,), "an object")
        named = _Item(found, self._inner(key), set(found))
        return tuple((name, named.number(name, 0.0)) for name in found)

    def texts(self, key: str) -> tuple[str, ...]:
        found = self._typed(key, None, (list,), "a list")
        if not all(isinstance(one, str) for one in found):
            raise InvalidArgument("a list of strings", field=self._inner(key))
        return tuple(found)

    def items(self, key: str, keys: set[str]) -> list[_Item]:
        found = self._typed(key, None, (list,), "a list")
        return [_Item(one, f"{self._inner(key)}[{index}]", keys) for index, one in enumerate(found)]

    def _typed(self, key: str, default: Any, kinds: tuple[type, ...], what: str) -> Any:
        found = self._value.get(key, default)
        if type(found) not in kinds:
            raise InvalidArgument(what, field=self._inner(key))
        return found

    def _inner(self, key: str) -> str:
        return key if self.where == "plan" else f"{self.where}.{key}"
