"""The sandbox that chat templates run in: bounded in steps, in time, and in what they build.

A template is foreign code: it comes with a model. Jinja's own sandbox keeps it away from the
process; here every loop turn and every call spends from a budget, statements and filters look at
the clock, and what could build much out of little is bounded or not there.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARS = 16 << 20
MAX_STEPS = 200_000
MAX_INDENT = 64
MAX_PRODUCT_BITS = 4096
BUDGET = "shunt budget"  # no template can name a variable with a space in it
_PADDING_METHODS = frozenset(
    ("center", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill")
)
_UNBOUNDED_FILTERS = ("batch", "center", "format", "pprint", "slice", "urlize", "wordwrap")


class Refused(Exception):
    """The template itself refused the conversation."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Render with a `Budget` under the name BUDGET. Raises SecurityError at a limit."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        replace, indent = self.filters["replace"], self.filters["indent"]
        self.filters |= dict.fromkeys(_UNBOUNDED_FILTERS, _unbounded)
        self.filters["tojson"] = _to_json
        self.filters["shunt_counted"] = _counted
        self.filters["shunt_in_time"] = _in_time
        self.filters["shunt_joined"] = _joined
        self.filters["replace"] = _bounded(replace, _check_replace, after_context=True)
        self.filters["join"] = _join
        self.filters["indent"] = _bounded(indent, _check_indent)
        self.globals["raise_exception"] = _raise_exception
        del self.globals["lipsum"]

    @staticmethod
    def concat(parts: Iterable[Any]) -> str:  # of macros and of blocks
        return _joined(parts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"operator {operator} is not for templates")
        sizes = [len(v) for v in (left, right) if isinstance(v, (str, list, tuple))]
        if operator == "*" and sizes:
            if not isinstance(left if isinstance(left, str) else right, str):
                raise SecurityError("a list is not repeated in templates")
            times = [abs(v) for v in (left, right) if isinstance(v, int)]
            if times and sizes[0] * times[0] > MAX_CHARS:
                raise SecurityError("a repetition is too long")
        numbers = [v.bit_length() for v in (left, right) if isinstance(v, int)]
        if operator == "*" and not sizes and sum(numbers) > MAX_PRODUCT_BITS:
            raise SecurityError("a product is too large")
        if operator == "+" and sum(sizes) > MAX_CHARS:
            raise SecurityError("a sum is too long")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __context.parent[BUDGET].spend(1)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            if name == "replace":
                _check_replace(owner, *args)
            elif name == "join":
                _check_join(owner, *args)
        return super().call(__context, __obj, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        padding = isinstance(obj, str) and attr in _PADDING_METHODS
        return not padding and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """No stand-in for str.format: it pads, too."""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for filter_ in list(template.find_all(nodes.Filter)):
            filter_.node = filter_.node and _timed(filter_.node)
        for assign in template.find_all(nodes.Assign):
            assign.node = _timed(assign.node)
        for condition in template.find_all(nodes.If):
            condition.test = _timed(condition.test)
        for output in template.find_all(nodes.Output):
            output.nodes = [_timed(part) for part in output.nodes]
        for loop in template.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "shunt_counted", [], [], None, None)
        for concat in template.find_all(nodes.Concat):
            parts = nodes.List(concat.nodes)
            concat.nodes = [nodes.Filter(parts, "shunt_joined", [], [], None, None)]
        return template


class Budget:
    """Loop turns, calls and time of one rendering."""

    def __init__(self, clock: Callable[[], float], limit_s: float) -> None:
        self._clock = clock
        self._deadline_s = clock() + limit_s
        self._left = MAX_STEPS

    def spend(self, steps: int) -> None:
        """Raises SecurityError when steps or time have run out."""
        self._left -= steps
        if self._left < 0 or self._clock() > self._deadline_s:
            raise SecurityError("the template runs for too long")


class _Counted:
    """What a loop goes through; each turn spends."""

    def __init__(self, values: Any, budget: Budget) -> None:
        self._values = values
        self._budget = budget

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        for value in self._values:
            self._budget.spend(1)
            yield value


@jinja2.pass_context
def _counted(context: Context, values: Any) -> Any:
    return _Counted(values, context.parent[BUDGET])


def _timed(expression: Any) -> Any:
    """The same value, if there is time left for it."""
    if isinstance(expression, nodes.TemplateData):
        return expression
    return nodes.Filter(expression, "shunt_in_time", [], [], None, None)


@jinja2.pass_context
def _in_time(context: Context, value: Any) -> Any:
    context.parent[BUDGET].spend(0)
    return value


def _joined(parts: Iterable[Any]) -> str:
    texts = [str(part) for part in parts]
    if sum(map(len, texts)) > MAX_CHARS:
        raise SecurityError("a text is too long")
    return "".join(texts)


def _bounded(
    filter_: Callable[..., Any], check: Callable[..., None], *, after_context: bool = False
) -> Callable[..., Any]:
    """A filter whose arguments are checked first; some take Jinja's own context before them."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        check(*args[after_context:], **kwargs)
        return filter_(*args, **kwargs)

    vars(checked).update(vars(filter_))  # among them what Jinja is to pass
    return checked


def _check_replace(text: Any, old: Any = "", new: Any = "", *_: Any, **__: Any) -> None:
    text = str(text)
    if len(text) + text.count(str(old)) * len(str(new)) > MAX_CHARS:
        raise SecurityError("a replacement is too long")


def _check_join(separator: str, parts: Iterable[Any] = (), *_: Any) -> None:
    if not isinstance(parts, (str, list, tuple)):
        raise SecurityError("only lists and texts are joined in templates")
    texts = sum(len(part) for part in parts if isinstance(part, str))
    if len(separator) * len(parts) + texts > MAX_CHARS:
        raise SecurityError("a text is too long")


def _join(parts: Iterable[Any], d: Any = "") -> str:
    texts = [str(part) for part in itertools.islice(parts, MAX_STEPS)]
    _check_join(str(d), texts)
    return str(d).join(texts)


def _check_indent(_text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    if (width if isinstance(width, int) else len(width)) > MAX_INDENT:
        raise SecurityError("an indentation is too wide")


def _unbounded(*_: Any, **__: Any) -> None:
    raise SecurityError("this filter is not for templates")


def _raise_exception(message: str) -> None:
    raise Refused(str(message))


def _to_json(value: Any, indent: int | None = None, **_options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=min(indent or 0, MAX_INDENT) or None)
