"""Files of API keys, as `shunt keys` writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.cli.key_files import add_key


@dataclass(frozen=True)
class KeyRing:
    """A file, and every key that was made in it."""

    path: Path
    keys: dict[str, str] = field(default_factory=dict)
    """By tenant, the newest."""
    ids: dict[str, str] = field(default_factory=dict)
    """Of those keys."""

    def add(self, tenant: str, **said: Any) -> str:
        """One more key of a tenant, with what is said of it by the file's names."""
        self.ids[tenant], self.keys[tenant] = add_key(self.path, tenant, said)
        return self.keys[tenant]

    def shown(self, tenant: str) -> dict[str, str]:
        """The header of a request."""
        return {"authorization": f"Bearer {self.keys[tenant]}"}
