"""Names that come from outside: what they may look like, so that none leaves store or prefix."""

from __future__ import annotations

import re

from services.common.errors import InvalidArgument

NAME_LIMIT_CHARS = 128
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


def check_model_name(name: str) -> str:
    """The name itself; raises InvalidArgument unless made of letters, digits, . - and _."""
    return _check(name, "model name")


def check_file_name(name: str) -> str:
    """The name of a file beside the weights; same rule as a model's."""
    return _check(name, "file name")


def _check(name: str, what: str) -> str:
    if not isinstance(name, str) or not 1 <= len(name) <= NAME_LIMIT_CHARS:
        raise InvalidArgument(f"{what} must have 1 to {NAME_LIMIT_CHARS} characters", field=what)
    if _NAME.fullmatch(name) is None or ".." in name:
        raise InvalidArgument(
            f"{what} may hold letters, digits and . _ - only, begin with a letter or digit"
            f" and not contain '..': {ascii(name)[:80]}",
            field=what,
        )
    return name


def check_digest(digest: str, what: str = "digest") -> str:
    """The digest itself; raises InvalidArgument unless it is 64 lower-case hexadecimal digits."""
    if not isinstance(digest, str) or _DIGEST.fullmatch(digest) is None:
        raise InvalidArgument(f"{what} must be 64 lower-case hexadecimal digits", field=what)
    return digest
