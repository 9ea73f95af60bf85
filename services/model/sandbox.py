"""The sandbox that chat templates run in: bounded in steps, in time, and in what they build.

A template is foreign code: it comes with a model. Jinja's own sandbox keeps it away from the
process; here every loop turn and every call spends from a budget, statements and filters look at
the clock, and what could build much out of little is measured before it is built. What a template
finds here is what transformers gives it (`render_jinja_template`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from services.model.bounds import (
    MAX_CHARS,
    MAX_INDENT,
    MAX_ITEMS,
    MAX_NUMBER_BITS,
    MAX_SLOW_CHARS,
    RenderBudget,
    printed_chars,
)
from services.model.formats import braces, percent
from services.model.written import Written, written, written_as

BUDGET = "shunt budget"  # no template can name a variable with a space in it
_SLOW_FILTERS = ("pprint", "striptags", "title", "urlize", "wordcount", "wordwrap", "xmlattr")
_PADDING_METHODS = ("center", "ljust", "rjust", "zfill")
_DISPLAYS = (nodes.List, nodes.Tuple, nodes.Dict)


class Refused(Exception):
    """The template itself refused the conversation."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Render with a `RenderBudget` under the name BUDGET. Raises SecurityError at a limit."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        for name in _SLOW_FILTERS:
            self.filters[name] = _bounded(self.filters[name], _check_slow)
        for name in ("batch", "slice"):
            self.filters[name] = _bounded(self.filters[name], _check_batch)
        self.filters |= {
            "center": _bounded(self.filters["center"], _check_center),
            "format": _format,
            "indent": _bounded(self.filters["indent"], _check_indent),
            "join": _join,
            "replace": _replace,
            "tojson": _to_json,
        } | _OWN_FILTERS
        self.globals |= {
            "raise_exception": _raise_exception,
            "namespace": _Namespace,
            "dict": _Dict(),
        }
        del self.globals["lipsum"]

    @staticmethod
    def concat(parts: Iterable[Any]) -> str:  # of macros and of blocks
        return _joined(parts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            return percent(left, right)
        texts = [len(v) for v in (left, right) if isinstance(v, str)]
        lists = [len(v) for v in (left, right) if isinstance(v, (list, tuple))]
        bits = [v.bit_length() for v in (left, right) if isinstance(v, int)]
        times = max((abs(v) for v in (left, right) if isinstance(v, int)), default=0)
        if operator == "+":
            context.parent[BUDGET].build(sum(texts))
            _check_items(sum(lists))
        elif operator == "*":
            context.parent[BUDGET].build(sum(texts) * times)
            _check_items(sum(lists) * times)
            _check_bits(sum(bits) if len(bits) == 2 else 0)
        elif operator == "**" and len(bits) == 2:
            _check_bits(bits[0] * max(right, 0))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget: RenderBudget = __context.parent[BUDGET]
        budget.spend(1)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            if name == "format":
                return braces(__self, owner, args, kwargs)
            if name == "format_map":
                return braces(__self, owner, (), *args)
            budget.build(_method_chars(owner, name, *args))
            if type(owner) is str:
                __obj = getattr(written_as(owner), name)
        return super().call(__context, __obj, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        unbounded = isinstance(obj, str) and attr in ("expandtabs", "translate")
        return not unbounded and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Formats are followed in `call`."""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Literals().visit(super()._parse(source, name, filename))
        for filter_ in list(template.find_all(nodes.Filter)):
            if filter_.node is not None and filter_.name not in _OWN_FILTERS:
                filter_.node = _timed(filter_.node)
        for assign in template.find_all(nodes.Assign):
            assign.node = _timed(assign.node)
        for condition in template.find_all(nodes.If):
            condition.test = _timed(condition.test)
        for output in template.find_all(nodes.Output):
            output.nodes = [_filtered(part, "shunt measured") for part in output.nodes]
        for loop in template.find_all(nodes.For):
            loop.iter = _filtered(loop.iter, "shunt counted")
        return template


class _Literals(NodeTransformer):
    """Marks what the template spells out itself, and measures the lists it spells out."""

    def visit_Const(self, node: nodes.Const) -> nodes.Expr:
        return _filtered(node, "shunt written") if isinstance(node.value, str) else node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Expr:
        return _filtered(nodes.Const(node.data), "shunt written")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        node.node = self.visit(node.node)
        if not isinstance(node.arg, nodes.Const):
            node.arg = self.visit(node.arg)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        return _filtered(nodes.List([self.visit(part) for part in node.nodes]), "shunt joined")

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        visited: nodes.Node = super().generic_visit(node, *args, **kwargs)
        loaded = getattr(visited, "ctx", "load") == "load"
        if isinstance(visited, _DISPLAYS) and loaded and list(visited.iter_child_nodes()):
            return _filtered(visited, "shunt measured")
        return visited


class _Generation(Extension):
    """`{% generation %}` surrounds what an assistant says; for a prompt it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (as the class above has it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        text: str = caller()
        return text


class _Namespace(Namespace):
    """Namespaces may hold one another many times: none is ever printed with what it holds."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Dict:
    """`dict(...)` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        made: dict[Any, Any] = dict(*args, **kwargs)
        printed_chars(made)
        return made


class _Counted:
    """What a loop goes through; each turn spends."""

    def __init__(self, values: Any, budget: RenderBudget) -> None:
        self._values = values
        self._budget = budget

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        for value in self._values:
            self._budget.spend(1)
            yield value


def _filtered(expression: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(expression, name, [], [], None, None, lineno=expression.lineno or 1)


def _timed(expression: nodes.Node) -> nodes.Filter:
    """The same value, if there is time left for it."""
    if isinstance(expression, nodes.Filter) and expression.name in _OWN_FILTERS:
        return expression
    return _filtered(expression, "shunt in_time")


@jinja2.pass_context
def _counted(context: Context, values: Any) -> Any:
    return _Counted(values, context.parent[BUDGET])


@jinja2.pass_context
def _in_time(context: Context, value: Any) -> Any:
    context.parent[BUDGET].spend(0)
    return value


@jinja2.pass_context
def _measured(context: Context, value: Any) -> Any:
    context.parent[BUDGET].spend(0)
    if isinstance(value, (list, tuple, dict)):
        printed_chars(value)
    return value


@jinja2.pass_context
def _written(_context: Context, text: str) -> Written:
    """Looks at no context: without one, Jinja would work it out when it compiles."""
    return written(text)


@jinja2.pass_context
def _joined_here(context: Context, parts: Iterable[Any]) -> str:
    joined = _joined(parts)
    context.parent[BUDGET].build(len(joined))
    return joined


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    printed_chars(value)
    return str(value)


def _joined(parts: Iterable[Any]) -> str:
    texts = [_text(part) for part in parts]
    if sum(map(len, texts)) > MAX_CHARS:
        raise SecurityError("a text is too long")
    return written("").join(texts)


def _bounded(filter_: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """A filter whose arguments are checked first, but for what Jinja itself passes."""
    passed = hasattr(filter_, "jinja_pass_arg")

    def checked(*args: Any, **kwargs: Any) -> Any:
        check(*args[passed:], **kwargs)
        return filter_(*args, **kwargs)

    vars(checked).update(vars(filter_))  # among them what Jinja is to pass
    return checked


def _replace_chars(text: str, old: Any, new: Any) -> int:
    return len(text) + text.count(str(old)) * len(str(new))


def _method_chars(owner: str, name: str, *args: Any) -> int:
    """At most how many characters a text's method makes."""
    if name == "replace" and len(args) > 1:
        return _replace_chars(owner, *args[:2])
    if name in _PADDING_METHODS and args and isinstance(args[0], int):
        return max(len(owner), args[0])
    if name == "join" and args:
        if not isinstance(args[0], (str, list, tuple)):
            raise SecurityError("only lists and texts are joined in templates")
        texts = sum(len(part) for part in args[0] if isinstance(part, str))
        return len(owner) * len(args[0]) + texts
    return len(owner)


@jinja2.pass_context
def _replace(context: Context, value: Any, old: Any, new: Any, count: int | None = None) -> str:
    text = written_as(_text(value))
    context.parent[BUDGET].build(_replace_chars(text, old, new))
    return text.replace(str(old), str(new), -1 if count is None else count)


@jinja2.pass_context
def _join(
    context: Context, values: Iterable[Any], d: Any = "", attribute: str | int | None = None
) -> str:
    if attribute is not None:
        values = map(make_attrgetter(context.environment, attribute), values)
    texts = [_text(part) for part in itertools.islice(values, MAX_ITEMS)]
    separator = written_as(_text(d))
    context.parent[BUDGET].build(len(separator) * len(texts) + sum(map(len, texts)))
    return separator.join(texts)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise jinja2.TemplateRuntimeError("positional and keyword arguments exclude each other")
    return percent(_text(value), kwargs or args)


def _check_indent(_value: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    if (width if isinstance(width, int) else len(width)) > MAX_INDENT:
        raise SecurityError("an indentation is too wide")


def _check_batch(_values: Any, count: int = 0, fill_with: Any = None) -> None:
    _check_items(count)
    if printed_chars(fill_with) * count > MAX_CHARS:
        raise SecurityError("a value is too large")


def _check_center(_value: Any, width: int = 80) -> None:
    if width > MAX_CHARS:
        raise SecurityError("a text is too long")


def _check_slow(value: Any, *_: Any, **__: Any) -> None:
    if printed_chars(value) > MAX_SLOW_CHARS:
        raise SecurityError("a text is too long for this filter")


def _check_items(count: int) -> None:
    if count > MAX_ITEMS:
        raise SecurityError("a list is too long")


def _check_bits(bits: int) -> None:
    if bits > MAX_NUMBER_BITS:
        raise SecurityError("a number is too large")


def _raise_exception(message: str) -> None:
    raise Refused(str(message))


@jinja2.pass_context
def _to_json(
    context: Context,
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    _check_indent("", indent or 0)
    printed_chars([x, separators])
    budget: RenderBudget = context.parent[BUDGET]
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    pieces = []
    for piece in encoder.iterencode(x):
        budget.build(len(piece))
        pieces.append(piece)
    return "".join(pieces)


# No template can name a filter with a space in it.
_OWN_FILTERS: dict[str, Callable[..., Any]] = {
    "shunt counted": _counted,
    "shunt in_time": _in_time,
    "shunt joined": _joined_here,
    "shunt measured": _measured,
    "shunt written": _written,
}
