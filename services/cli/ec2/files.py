"""Files that come with the commands: the stack's template, and which types may be bought. In a
checkout they stand in deploy/ec2, and a wheel carries them beside this module."""

from __future__ import annotations

from pathlib import Path

_CARRIED = Path(__file__).parent / "data"
_CHECKOUT = Path(__file__).parents[3] / "deploy/ec2"
DIRECTORY = _CARRIED if _CARRIED.is_dir() else _CHECKOUT
TEMPLATE = DIRECTORY / "template.yaml"
TYPES = DIRECTORY / "types.yaml"
