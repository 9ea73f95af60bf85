"""`shunt chat`: talks with the model; one question, or a conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rich.console import Console
from shuntserve.router.v1 import router_pb2

from services.cli.conversation import stream


async def answer(
    console: Console, routers: Sequence[str], model: str, turns: list[tuple[str, str]], tokens: int
) -> str:
    """Prints the answer to the turns so far as it comes, and returns it."""
    messages = [router_pb2.ChatMessage(role=role, content=text) for role, text in turns]
    request = router_pb2.GenerateRequest(
        model=model,
        chat=router_pb2.Chat(messages=messages),
        sampling=router_pb2.SamplingOptions(temperature=0.0, max_tokens=tokens),
    )
    text = ""
    try:
        async for event in stream(routers, request):
            for delta in event.deltas:
                text += delta.text
                console.print(delta.text, end="", markup=False, highlight=False, soft_wrap=True)
    finally:
        console.print()  # what follows, an error too, stands on a line of its own
    return text


def converse(console: Console, routers: Sequence[str], model: str, tokens: int) -> None:
    """Asks until the input ends, or Ctrl-C at the prompt; in mid-answer it stops the answer."""
    turns: list[tuple[str, str]] = []
    console.print(f"Talking with {model}; Ctrl-D ends.", highlight=False)
    # a loop that runs while the terminal is read would take Ctrl-C and not hear it
    with asyncio.Runner() as runner:
        while True:
            try:
                question = console.input("[bold]> [/]").strip()
            except (EOFError, KeyboardInterrupt):
                console.print()
                return
            if question:
                turns.append(("user", question))
                try:
                    said = runner.run(answer(console, routers, model, turns, tokens))
                except KeyboardInterrupt:
                    turns.pop()
                else:
                    turns.append(("assistant", said))
