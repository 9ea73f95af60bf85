"""What is told of generations and models, beside what they say."""

from __future__ import annotations

from typing import Any

from services.common.exchange import GenerationView


def state_of(view: GenerationView) -> dict[str, Any]:
    """Where a generation stands, without its text. More than one numerics class: from some token
    on it was computed by other arithmetic than it began under."""
    spans = {span.choice: span for span in view.spans}
    choices = []
    for index in range(view.request.choices):
        span = spans.get(index)
        finish = span.finish_reason if span is not None else None
        choices.append(
            {
                "index": index,
                "tokens": view.request.answered(len(span.ids)) if span is not None else 0,
                "finish_reason": finish.value if finish is not None else None,
            }
        )
    return {
        "id": view.request.generation_id,
        "object": "generation",
        "created": view.request.created_unix_s,
        "model": view.request.model.model_id,
        "state": view.state.value,
        "epoch": view.epoch,
        "pipeline": view.head.pipeline_id if view.head is not None else None,
        "numerics_classes": list(view.classes),
        "choices": choices,
    }


def capabilities(*, chats: bool) -> dict[str, bool]:
    """What can be asked of a model."""
    return {
        "completions": True,
        "chat_completions": chats,
        "echo": True,
        "logprobs": True,
        "structured_outputs": True,
    }
