"""What a node counts."""

from __future__ import annotations

from prometheus_client import Counter

RESTARTS = Counter("shunt_node_restarts", "Parts that ended and were started again", ["part"])
NOTICES = Counter("shunt_node_notices", "Notices that changed something", ["kind"])
