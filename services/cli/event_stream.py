"""Prints events for as long as somebody reads them."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing

from rich.console import Console

from services.cli.event_lines import Event, json_line, text_line
from services.cli.told import complain


def print_events(
    events: AsyncGenerator[Event, None], kinds: Collection[str], as_json: bool
) -> None:
    """Until they end, Ctrl-C, or the end of who reads the output; only these kinds, or all."""
    try:
        asyncio.run(_print_while_read(events, kinds, as_json))
    except BrokenPipeError:
        # what the buffer holds would be written once more at the exit, and complained of
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _print_while_read(
    events: AsyncGenerator[Event, None], kinds: Collection[str], as_json: bool
) -> None:
    loop, output = asyncio.get_running_loop(), sys.stdout.fileno()
    printing = asyncio.ensure_future(_print(events, kinds, as_json))
    enough = asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, enough.set)
    piped = stat.S_ISFIFO(os.fstat(output).st_mode)
    if piped:  # its end is told at once, not when the next event happens
        loop.add_reader(output, enough.set)
    ending = asyncio.ensure_future(enough.wait())
    await asyncio.wait([printing, ending], return_when=asyncio.FIRST_COMPLETED)
    if piped:
        loop.remove_reader(output)
    for task in (printing, ending):
        task.cancel()
    await asyncio.wait([printing, ending])
    if not printing.cancelled():
        printing.result()


async def _print(
    events: AsyncGenerator[Event, None], kinds: Collection[str], as_json: bool
) -> None:
    console = Console(highlight=False, soft_wrap=True)
    missing = set(kinds)
    async with aclosing(events) as found:
        async for event in found:
            if kinds and event.kind not in kinds:
                continue
            missing.discard(event.kind)
            if not as_json and console.is_terminal:
                console.print(text_line(event))
                continue
            sys.stdout.write(f"{json_line(event) if as_json else text_line(event).plain}\n")
            sys.stdout.flush()
    for kind in sorted(missing):  # it may have been misspelt
        complain(f"there is no event of the kind {kind[:64]}")
