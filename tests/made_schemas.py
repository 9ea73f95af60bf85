"""JSON schemas by the hundred, put together from small parts by a number: the same each time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]
STRINGS: list[Schema] = [
    {"type": "string", "maxLength": 6},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^[a-z]{1,5}$"},
    {"type": "string", "pattern": "^(north|south) [0-9]{2}$"},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}(-[a-f]+)?$", "maxLength": 9},
    *({"type": "string", "format": name} for name in ("date", "time", "date-time", "duration")),
    *({"type": "string", "format": name} for name in ("email", "hostname", "ipv4", "uuid")),
]
NUMBERS: list[Schema] = [
    {"type": "integer", "minimum": -5, "maximum": 12},
    {"type": "integer", "exclusiveMinimum": 99, "maximum": 1050},
    {"type": "integer", "minimum": 0, "maximum": 60, "multipleOf": 15},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "exclusiveMinimum": -2.5, "exclusiveMaximum": 7},
]
PLAIN: list[Schema] = [
    {"type": "boolean"},
    {"type": "null"},
    {"type": ["boolean", "null"]},
    {"enum": ["red", "green", 7, None, True]},
    {"enum": ["é", 'a "quote"', "back\\slash", "line\nbreak"]},
    {"const": {"kind": "fixed", "list": [1, 2, {"a": None}]}},
    {"const": "only"},
]
REFUSED: list[tuple[str, Schema]] = [
    ("not", {"not": {"type": "null"}}),
    ("if", {"if": {"type": "string"}, "then": {"minLength": 1}}),
    ("uniqueItems", {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}),
    ("contains", {"type": "array", "contains": {"const": 1}}),
    ("propertyNames", {"type": "object", "propertyNames": {"maxLength": 3}}),
    ("dependentRequired", {"type": "object", "dependentRequired": {"a": ["b"]}}),
    ("maxProperties", {"type": "object", "properties": {"a": {}}, "maxProperties": 1}),
    ("format", {"type": "string", "format": "phase-of-the-moon"}),
    ("regex", {"type": "string", "pattern": "^(?=a)b$"}),
    ("regex", {"type": "string", "pattern": "^(a)\\1$"}),
    ("$ref", {"$ref": "https://schemas.example/one.json"}),
]
"""What stands in the way, as a refusal names it, and a schema of it."""


class _Maker:
    """One schema, of chance that its number decides."""

    def __init__(self, number: int) -> None:
        self._chance = random.Random(number)
        self.definitions: dict[str, Schema] = {}

    def part(self, depth: int) -> Schema:
        """Any schema that nests no deeper."""
        if depth == 0:
            return self._chance.choice([*STRINGS, *NUMBERS, *PLAIN])
        makers = (self.object, self.object, self.array, self.tuple, self.either, self.reference)
        return self._chance.choice(makers)(depth - 1)

    def object(self, depth: int) -> Schema:
        names = self._chance.sample(["a", "name", "größe", "x y", "$id_2", 'q"t', "z"], 3)
        properties = {name: self.part(depth) for name in names}
        bare = {"type": "object", "properties": properties, "additionalProperties": False}
        kind = self._chance.random()
        if kind < 0.6:
            required = [name for name in names if self._chance.random() < 0.6]
            return {**bare, "required": required}
        more: Schema = {"required": names, "maxProperties": 4}
        if kind < 0.8:
            return {**bare, **more, "additionalProperties": self.part(0)}
        return {**bare, **more, "patternProperties": {"^k[0-9]$": self.part(0)}}

    def array(self, depth: int) -> Schema:
        least = self._chance.randrange(3)
        most = least + self._chance.randrange(3)
        return {"type": "array", "items": self.part(depth), "minItems": least, "maxItems": most}

    def tuple(self, depth: int) -> Schema:
        items = [self.part(depth), self.part(0)]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": 2}

    def either(self, depth: int) -> Schema:
        if self._chance.random() < 0.5:
            return {"anyOf": [self.part(depth), self.part(0)]}
        tagged = [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "is": self.part(depth)},
                "required": ["kind", "is"],
                "additionalProperties": False,
            }
            for kind in ("one", "other")
        ]
        return {"oneOf": tagged}

    def reference(self, depth: int) -> Schema:
        name = f"d{len(self.definitions)}"
        self.definitions[name] = {}
        self.definitions[name] = self.part(depth)
        return {"$ref": f"#/$defs/{name}"}


def made(number: int) -> Schema:
    """A schema that can be followed."""
    maker = _Maker(number)
    schema = maker.part(1 + number % 3)
    return {**schema, "$defs": maker.definitions} if maker.definitions else schema


def refused(number: int) -> tuple[str, Schema]:
    """A schema that cannot be followed somewhere in it, and what is in the way."""
    keyword, schema = REFUSED[number % len(REFUSED)]
    within = number // len(REFUSED)
    wrapped: list[Schema] = [
        schema,
        {"type": "object", "properties": {"a": schema}, "required": ["a"]},
        {"type": "array", "items": schema, "minItems": 1},
        {"$defs": {"d": schema}, "type": "array", "items": {"$ref": "#/$defs/d"}, "minItems": 1},
    ]
    return keyword, wrapped[within % len(wrapped)]


def recursive() -> Iterator[Schema]:
    """Schemas that hold themselves."""
    for most in (1, 2):
        children = {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": most}
        tree = {
            "type": "object",
            "properties": {"name": STRINGS[2], "children": children},
            "required": ["name", "children"],
            "additionalProperties": False,
        }
        yield {"$defs": {"tree": tree}, "$ref": "#/$defs/tree"}
