"""Answers in the XML of EC2, made by the shapes that botocore has of them: what they do not know
cannot be said."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any
from xml.etree import ElementTree

import botocore.session

NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"


@cache
def _service() -> Any:
    return botocore.session.get_session().get_service_model("ec2")


def answer(action: str, value: dict[str, Any]) -> bytes:
    """Of an action; raises ValueError for a member that its shape has not, or of another type."""
    shape = _service().operation_model(action).output_shape
    root = ElementTree.Element(f"{action}Response", xmlns=NAMESPACE)
    ElementTree.SubElement(root, "requestId").text = "of-the-filter"
    _fill(root, shape, value, action)
    return ElementTree.tostring(root)


def error(code: str, message: str) -> bytes:
    """As every action of EC2 refuses."""
    root = ElementTree.Element("Response")
    one = ElementTree.SubElement(ElementTree.SubElement(root, "Errors"), "Error")
    ElementTree.SubElement(one, "Code").text = code
    ElementTree.SubElement(one, "Message").text = message
    ElementTree.SubElement(root, "RequestID").text = "of-the-filter"
    return ElementTree.tostring(root)


def _fill(element: ElementTree.Element, shape: Any, value: Any, place: str) -> None:
    match shape.type_name, value:
        case "structure", dict():
            for name, inner in value.items():
                if name not in shape.members:
                    raise ValueError(f"{place} has no {name}")
                member = shape.members[name]
                child = ElementTree.SubElement(element, member.serialization.get("name", name))
                _fill(child, member, inner, f"{place}.{name}")
        case "list", list():
            for inner in value:
                child = ElementTree.SubElement(
                    element, shape.member.serialization.get("name", "item")
                )
                _fill(child, shape.member, inner, place)
        case "string", str():
            if shape.enum and value not in shape.enum:
                raise ValueError(f"{place} is one of {shape.enum}, not {value}")
            element.text = value
        case "timestamp", datetime():
            element.text = value.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        case ("integer", int()) | ("double", float()):
            element.text = str(value)
        case kind, _:
            raise ValueError(f"{place} is a {kind}, not {value!r}")
