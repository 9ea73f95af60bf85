"""Names that come from outside: what they may look like, so that none leaves store or prefix."""

from __future__ import annotations

import re

from services.common.errors import InvalidArgument

NAME_LIMIT_CHARS = 128
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_TENSOR = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


def check_model_name(name: str) -> str:
    """The name itself; raises InvalidArgument unless made of letters, digits, . - and _."""
    return _check(name, "model name")


def is_model_name(name: str) -> bool:
    """Whether this may be a model's name; what is found beside models need not be one."""
    try:
        check_model_name(name)
    except InvalidArgument:
        return False
    return True


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


def is_tensor_name(text: str) -> bool:
    """Whether a tensor may be called so."""
    return _TENSOR.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Whether this may be an object's name."""
    return _DIGEST.fullmatch(text) is not None


def check_digest(digest: str, what: str = "digest") -> str:
    """The digest itself; raises InvalidArgument unless it is 64 lower-case hexadecimal digits."""
    if not isinstance(digest, str) or _DIGEST.fullmatch(digest) is None:
        raise InvalidArgument(f"{what} must be 64 lower-case hexadecimal digits", field=what)
    return digest
