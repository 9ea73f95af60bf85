"""What an operator has to see to: told once, until it is over."""

from __future__ import annotations

import logging

from services.controller.providers.ec2.failures import Matter, Refusal


class Complaints:
    """By what was tried and what EC2 said of it."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._told: set[tuple[str, str]] = set()

    def about(self, tried: str, refusal: Refusal) -> None:
        """It failed; the same failure of the same thing is told once."""
        key = tried, refusal.code
        if key in self._told:
            return
        self._told.add(key)
        level = logging.ERROR if refusal.matter is Matter.OPERATOR else logging.WARNING
        self._log.log(level, "EC2 refuses", extra={"tried": tried, "why": refusal.message})

    def over(self, tried: str) -> None:
        """It went well."""
        self._told = {key for key in self._told if key[0] != tried}
