"""Reads XML from untrusted sources. defusedxml refuses entities; this module limits the size and the depth as well."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from defusedxml.common import DTDForbidden
from defusedxml.ElementTree import DefusedXMLParser

MAX_DEPTH = 32  # elements in elements; files that dxc reads have a handful


class UnusableXml(Exception):
    """XML that cannot be used; the message is the reason, in one line."""


class _Builder(ElementTree.TreeBuilder):
    def __init__(self, noun: str) -> None:
        super().__init__()
        self._noun, self._depth = noun, 0

    def start(self, tag: str, attrs: dict[str, str], /) -> ElementTree.Element:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnusableXml(f"has elements nested more than {MAX_DEPTH} deep, which no {self._noun} needs")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ElementTree.Element:
        self._depth -= 1
        return super().end(tag)


def parse_xml(path: Path, *, max_bytes: int, noun: str) -> ElementTree.Element:
    """Read an XML file.

    Args:
        path: the file.
        max_bytes: larger files are refused.
        noun: the kind of file, for messages: annotation, mosaic.

    Returns:
        The root element.

    Raises:
        UnusableXml: the file cannot be read, is too large, has a DOCTYPE, is nested too deeply, or is not well-formed.

    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise UnusableXml("is not a file")
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise UnusableXml(f"cannot be read: {error.strerror or error}") from error
    if len(content) > max_bytes:
        raise UnusableXml(f"has more than {max_bytes / 1e6:g} MB, too much for one {noun}")
    try:
        parser = DefusedXMLParser(target=_Builder(noun), forbid_dtd=True)
        parser.feed(content)
        return parser.close()
    except DTDForbidden as error:  # entities are declared there
        raise UnusableXml(f"has a DOCTYPE, which no {noun} needs; remove it") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: unknown encodings
        raise UnusableXml(f"is not well-formed XML: {' '.join(str(error).split())}") from error
