"""Boxes of crossings as Pascal VOC annotations: one XML file beside a photo chip, read and written.

Format: Everingham et al., The Pascal Visual Object Classes (VOC) Challenge, IJCV 88, 2010,
doi 10.1007/s11263-009-0275-4. Its pixel coordinates count from 1 and include both ends. All other code of dxc counts
the edges of pixels from 0. Only this module converts one into the other: xmin = xmin_voc - 1, xmax = xmax_voc.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from dxc.files import write_atomically
from dxc.geo.guarded_xml import UnusableXml, parse_xml

LABEL = "culvert"  # the label of the published annotations
MAX_BYTES = 1_000_000  # thousands of boxes; one chip has a handful
EDGES = ("xmin", "ymin", "xmax", "ymax")
ROUNDING = 1e-6  # pixels by which sums of floats may be off


class UnusableAnnotation(Exception):
    """An annotation that cannot be used; the message is the reason, in one line."""


class Annotation(NamedTuple):
    """The content of an annotation of an image of W x H pixels."""

    boxes: np.ndarray
    """float64 (n, 4): xmin, ymin, xmax, ymax in pixel edges from the upper left corner, y down; 0 <= xmin < xmax <= W.
    The box 0 0 W H is the whole image."""
    notes: tuple[str, ...]
    """What was corrected: boxes that were clipped to the image."""


def read_voc(path: Path, *, width: int, height: int, labels: Sequence[str] = (LABEL,)) -> Annotation:
    """Read the boxes of an image. An annotation without an object is a negative; its boxes are (0, 4).

    Fractional coordinates are kept. Boxes that reach beyond the image are clipped and listed in `notes`. Fields
    that say nothing about the boxes may be missing or unknown to VOC, in any order. A box with xmin = xmax has no area:
    in VOC's definition it is one pixel wide, but in practice it is a slip of the mouse.

    Args:
        path: the annotation.
        width: of the image in pixels.
        height: of the image in pixels.
        labels: labels that objects may have.

    Raises:
        UnusableAnnotation: the file cannot be read, is no VOC annotation, or belongs to an image of another size; an
            object has another label; or a box is inverted, has no area, or lies outside of the image.
    """
    root = _parse(path)
    if root.tag != "annotation":
        raise UnusableAnnotation(
            f"is not a Pascal VOC annotation: its root is <{root.tag[:40]}>, not <annotation>"
        )
    size = root.find("size")
    if size is not None:
        said = (_number(size, "width", "the size"), _number(size, "height", "the size"))
        if said != (width, height):
            raise UnusableAnnotation(
                f"is of an image of {said[0]:g} x {said[1]:g} pixels, the image has {width} x {height}"
            )
    limits = np.array([width, height, width, height], dtype=float)
    boxes: list[np.ndarray] = []
    notes: list[str] = []
    for number, item in enumerate(root.findall("object"), 1):
        what = f"object {number}"
        label = _text(item, "name")
        if label not in labels:
            raise UnusableAnnotation(f"{what} has the label '{label[:40]}', expected {' or '.join(labels)}")
        corners = item.find("bndbox")
        if corners is None:
            raise UnusableAnnotation(f"{what} has no <bndbox>")
        box = np.array([_number(corners, edge, what) for edge in EDGES])
        text = " ".join(f"{edge}={value:g}" for edge, value in zip(EDGES, box, strict=True))
        if box[2] < box[0] or box[3] < box[1]:
            raise UnusableAnnotation(f"{what} has an inverted box: {text}")
        if box[2] == box[0] or box[3] == box[1]:
            raise UnusableAnnotation(f"{what} has a box without area: {text}")
        box[:2] -= 1
        inside = np.clip(box, 0, limits)
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            raise UnusableAnnotation(
                f"{what} has its box outside of the image of {width} x {height} pixels: {text}"
            )
        if (inside != box).any():
            notes.append(f"{what}: clipped to the image of {width} x {height} pixels, was {text}")
        boxes.append(inside)
    return Annotation(np.array(boxes).reshape(-1, 4), tuple(notes))


def write_voc(
    path: Path,
    boxes: Any,
    *,
    width: int,
    height: int,
    image: str,
    label: str = LABEL,
    depth: int,
    sync: bool = True,
) -> None:
    """Write an annotation, whole or not at all.

    Boxes are rounded outward to whole pixels, to 2 x 2 at least (see read_voc on xmin = xmax), and end at the
    image's edge.

    Args:
        path: the annotation.
        boxes: (n, 4), as in Annotation.
        width: of the image in pixels.
        height: of the image in pixels.
        image: name of the image file.
        label: of every box.
        depth: number of bands of the image.
        sync: as in write_atomically.

    Raises:
        ValueError: a box has no area in the image.
        OSError: the file cannot be written.
    """
    root = ElementTree.Element("annotation")
    _add(root, folder=path.parent.name, filename=image)
    _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=depth)
    _add(root, segmented=0)
    for box in np.asarray(boxes, dtype=float).reshape(-1, 4):
        xmin, xmax = _whole(box[0], box[2], width)
        ymin, ymax = _whole(box[1], box[3], height)
        item = ElementTree.SubElement(root, "object")
        cut = xmin == 0 or ymin == 0 or xmax == width or ymax == height
        _add(item, name=label, pose="Unspecified", truncated=int(cut), difficult=0)
        corners = ElementTree.SubElement(item, "bndbox")
        _add(corners, xmin=xmin + 1, ymin=ymin + 1, xmax=xmax, ymax=ymax)
    ElementTree.indent(root, "\t")
    write_atomically(path, ElementTree.tostring(root, encoding="unicode") + "\n", sync=sync)


def _parse(path: Path) -> ElementTree.Element:
    try:
        return parse_xml(path, max_bytes=MAX_BYTES, noun="annotation")
    except UnusableXml as error:
        raise UnusableAnnotation(str(error)) from error


def _text(parent: ElementTree.Element, tag: str) -> str:
    return " ".join((parent.findtext(tag) or "").split())


def _number(parent: ElementTree.Element, tag: str, what: str) -> float:
    text = _text(parent, tag)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UnusableAnnotation(f"{what} has no number in <{tag}>: '{text[:40]}'")
    return value


def _whole(low: float, high: float, end: int) -> tuple[int, int]:
    """The smallest range of at least two whole pixels within 0..end that holds low..high."""
    if not (low < high and low < end and high > 0):  # also where one is not a number
        raise ValueError(f"a box from {low} to {high} has no area in an image of {end} pixels")
    first, last = max(0, math.floor(low + ROUNDING)), min(end, math.ceil(high - ROUNDING))
    if last - first < 2:
        first, last = (first, first + 2) if first + 2 <= end else (end - 2, end)
    return first, last


def _add(parent: ElementTree.Element, **fields: object) -> None:
    for tag, value in fields.items():
        ElementTree.SubElement(parent, tag).text = str(value)
