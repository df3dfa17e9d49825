"""Build XML trees, so that no value is pasted into XML text."""

from __future__ import annotations

from xml.etree import ElementTree as ET

Element = ET.Element


def element(tag: str, /, *children: Element | str, **attributes: object) -> Element:
    """An element with attributes and children; a string becomes its text."""
    node = ET.Element(tag, {name: str(value) for name, value in attributes.items()})
    for child in children:
        if isinstance(child, str):
            node.text = child
        else:
            node.append(child)
    return node


def text_of(root: Element) -> str:
    """The tree as indented text."""
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"
