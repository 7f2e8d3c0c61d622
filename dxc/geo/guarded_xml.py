"""XML that a stranger may have written: its size and depth are limited, and nothing in it is expanded or fetched."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

MAX_DEPTH = 32  # elements in elements; what dxc reads has a handful


class UnusableXml(Exception):
    """XML that is not read; the message is the reason, in one line."""


class _Builder(ElementTree.TreeBuilder):
    def __init__(self, noun: str) -> None:
        super().__init__()
        self._noun, self._depth = noun, 0

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Entities are declared in a DOCTYPE: they can grow a small file into gigabytes or name files to read."""
        raise UnusableXml(f"has a DOCTYPE, which no {self._noun} needs; remove it")

    def start(self, tag: str, attrs: dict[str, str], /) -> ElementTree.Element:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnusableXml(f"has elements nested more than {MAX_DEPTH} deep, which no {self._noun} needs")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ElementTree.Element:
        self._depth -= 1
        return super().end(tag)


def parse_xml(path: Path, *, max_bytes: int, noun: str) -> ElementTree.Element:
    """Read a file of XML, its root element. `noun` is what it should be, for messages: annotation, mosaic.

    Raises UnusableXml for a file that cannot be read, is larger than max_bytes, has a DOCTYPE, is nested deeply, or is
    not well-formed.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise UnusableXml("is not a file")
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise UnusableXml(f"cannot be read: {error.strerror or error}") from error
    if len(content) > max_bytes:
        raise UnusableXml(f"has more than {max_bytes / 1e6:g} MB, too much for one {noun}")
    try:
        return ElementTree.fromstring(content, ElementTree.XMLParser(target=_Builder(noun)))
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: unknown encodings
        raise UnusableXml(f"is not well-formed XML: {' '.join(str(error).split())}") from error
