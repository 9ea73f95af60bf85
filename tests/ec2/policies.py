"""Whether IAM would allow a call: policies of an identity, as far as the roles of a mesh use them.

Source: IAM's page on how it evaluates policies, for one account and no boundary: whatever is denied
is denied, whatever is not allowed is too. What this does not know is an error, and never a yes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Context = Mapping[str, str | Sequence[str]]
"""What the request says of itself, by condition key; keys are read in any case."""

_KNOWN = {"Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Condition"}
_VARIABLE = re.compile(r"\$\{([^}]+)\}")


@dataclass(frozen=True)
class Call:
    """One action on one resource. Calls that touch several resources are several of these."""

    action: str
    resource: str
    context: Context = field(default_factory=dict)


def allows(documents: Iterable[Mapping[str, Any]], call: Call) -> bool:
    """Whether an identity with these policies may make the call."""
    applying = [
        statement["Effect"]
        for document in documents
        for statement in _list(document["Statement"])
        if _applies(statement, call)
    ]
    return "Allow" in applying and "Deny" not in applying


def _applies(statement: Mapping[str, Any], call: Call) -> bool:
    unknown = statement.keys() - _KNOWN
    if unknown or statement["Effect"] not in ("Allow", "Deny"):
        raise ValueError(f"not known: {sorted(unknown) or statement['Effect']}")
    context = {key.lower(): value for key, value in call.context.items()}
    named = _matches(statement, "Action", call.action, {}, ignore_case=True)
    there = _matches(statement, "Resource", call.resource, context)
    held = [
        _holds(operator, key, _list(wanted), context)
        for operator, keys in statement.get("Condition", {}).items()
        for key, wanted in keys.items()
    ]
    return named and there and all(held)


def _matches(
    statement: Mapping[str, Any],
    key: str,
    value: str,
    context: Context,
    *,
    ignore_case: bool = False,
) -> bool:
    if f"Not{key}" in statement:
        patterns = _list(statement[f"Not{key}"])
        return not any(_like(one, value, context, ignore_case) for one in patterns)
    return any(_like(one, value, context, ignore_case) for one in _list(statement[key]))


def _like(pattern: str, value: str, context: Context, ignore_case: bool = False) -> bool:
    """With * and ?; a variable that the request does not have matches nothing."""
    filled = _filled(pattern, context)
    if filled is None:
        return False
    text = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in filled)
    return re.fullmatch(text, value, re.DOTALL | (re.IGNORECASE if ignore_case else 0)) is not None


def _filled(pattern: str, context: Context) -> str | None:
    names = _VARIABLE.findall(pattern)
    values = {name: context.get(name.lower()) for name in names}
    if not all(isinstance(value, str) for value in values.values()):
        return None
    return _VARIABLE.sub(lambda found: str(values[found.group(1)]), pattern)


def _equal(wanted: str, value: str, context: Context) -> bool:
    return _filled(wanted, context) == value


def _is_bool(wanted: str, value: str, _: Context) -> bool:
    return wanted.lower() == value.lower()


_OPERATORS: dict[str, Callable[[str, str, Context], bool]] = {
    "StringEquals": _equal,
    "StringLike": _like,
    "ArnEquals": _like,  # IAM makes no difference between the two of ARNs
    "ArnLike": _like,
    "Bool": _is_bool,
}


def _holds(operator: str, key: str, wanted: Sequence[str], context: Context) -> bool:
    quantifier, _, name = operator.rpartition(":")
    test = _OPERATORS[name]
    found = context.get(key.lower())
    values = _list(found) if found is not None else []
    met = [any(test(str(one), value, context) for one in wanted) for value in values]
    match quantifier:
        case "ForAllValues":
            return all(met)  # of none, too
        case "ForAnyValue":
            return any(met)
        case "":
            return len(met) == 1 and met[0]
        case _:
            raise ValueError(f"not known: {operator}")


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
