"""Where the journal is kept, as SHUNT_CONTROLLER_JOURNAL says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from services.common.errors import InvalidArgument

SQLITE = "sqlite:"
POSTGRESQL = ("postgresql://", "postgres://")
FORMS = "sqlite:PATH or postgresql://USER@HOST/DATABASE"
DEFAULT_FILE = "journal.db"


@dataclass(frozen=True, slots=True)
class SqlitePlace:
    """A file of this machine."""

    path: Path


@dataclass(frozen=True, slots=True)
class PostgresPlace:
    """A database, which several controllers may reach."""

    parameters: dict[str, str] = field(repr=False)
    """Of libpq; a password may be among them."""

    @property
    def name(self) -> str:
        """What may be told of it: no password, and nothing else of the parameters."""
        found = self.parameters
        user = f"{found['user']}@" if "user" in found else ""
        port = f":{found['port']}" if "port" in found else ""
        return f"postgresql://{user}{found.get('host', '')}{port}/{found.get('dbname', '')}"


def place_of(text: str, data_dir: Path) -> SqlitePlace | PostgresPlace:
    """Empty: a file in the directory. Raises InvalidArgument, which echoes nothing: there may be a
    password in the text."""
    if not text:
        return SqlitePlace(data_dir / DEFAULT_FILE)
    if text.startswith(SQLITE):
        path = text.removeprefix(SQLITE)
        if not path or path.startswith("//") or "\0" in path:
            raise InvalidArgument("is sqlite:PATH, a path without host", field="journal")
        return SqlitePlace(Path(path))
    if text.startswith(POSTGRESQL):
        return PostgresPlace(_parameters(text))
    raise InvalidArgument(f"is {FORMS}", field="journal")


def _parameters(uri: str) -> dict[str, str]:
    try:  # here, so that only who keeps a journal there needs the library
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict
    except ImportError:
        raise InvalidArgument(
            "PostgreSQL needs psycopg: install shuntserve[controller]", field="journal"
        ) from None
    try:
        found = conninfo_to_dict(uri)
    except ProgrammingError:  # its text repeats what it does not understand
        raise InvalidArgument(
            f"is no URI of PostgreSQL's: {POSTGRESQL[0]}…", field="journal"
        ) from None
    return {name: str(value) for name, value in found.items() if value is not None}
