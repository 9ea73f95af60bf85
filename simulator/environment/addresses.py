"""Where processes are found whoever plays them at the moment."""

from __future__ import annotations

CONTROLLER = "controller"
PLACEMENT = "placement"
ROUTERS = "router-"
"""What the address of each router begins with."""
