"""Pascal VOC annotations: files of other tools, and boxes that are written and read back."""

from __future__ import annotations

import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from dxc.geo.voc import UnusableAnnotation, read_voc, write_voc

EDGES = ("xmin", "ymin", "xmax", "ymax")


def box(xmin: object, ymin: object, xmax: object, ymax: object, name: str = "culvert") -> str:
    corners = "".join(
        f"<{edge}>{v}</{edge}>" for edge, v in zip(EDGES, (xmin, ymin, xmax, ymax), strict=True)
    )
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"


def annotation(*objects: str, size: str = "<size><width>100</width><height>80</height></size>") -> str:
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def read(folder: Path, text: str | bytes, labels: tuple[str, ...] = ("culvert",)) -> tuple[list, tuple]:
    """Read boxes and notes of an image of 100 x 80 pixels."""
    path = folder / "chip.xml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    found = read_voc(path, width=100, height=80, labels=labels)
    assert (found.boxes.dtype, found.boxes.shape[1:]) == (np.float64, (4,))
    return found.boxes.tolist(), found.notes


def write(path: Path, boxes: object, width: int = 100, height: int = 80) -> None:
    write_voc(path, boxes, width=width, height=height, image="chip.tif", depth=4)


def test_pixels_count_from_1_and_both_ends_belong_to_the_box(tmp_path: Path) -> None:
    write(tmp_path / "chip.xml", [[10, 20, 30, 45], [0, 0, 100, 80]])
    root = ElementTree.parse(tmp_path / "chip.xml").getroot()
    assert [
        [int(item.findtext(f"bndbox/{edge}") or 0) for edge in EDGES] for item in root.iter("object")
    ] == [
        [11, 21, 30, 45],
        [1, 1, 100, 80],
    ]
    assert [root.findtext(f"size/{name}") for name in ("width", "height", "depth")] == ["100", "80", "4"]
    assert (root.tag, root.findtext("filename"), root.findtext("object/name")) == (
        "annotation", "chip.tif", "culvert",
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["chip.xml"]  # no draft stays


def test_a_box_at_any_edge_of_the_image_may_be_cut(tmp_path: Path) -> None:
    edges = [[0, 20, 30, 45], [10, 0, 30, 45], [10, 20, 100, 45], [10, 20, 30, 80]]
    write(tmp_path / "chip.xml", [[1, 1, 99, 79], *edges])
    root = ElementTree.parse(tmp_path / "chip.xml").getroot()
    assert [item.findtext("truncated") for item in root.iter("object")] == ["0", "1", "1", "1", "1"]


def test_whole_pixels_come_back_as_they_went(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for count in (0, 1, 2, 50):
        low = np.column_stack([rng.integers(0, 99, count), rng.integers(0, 79, count)])
        high = low + 2 + rng.integers(0, np.maximum(1, (100, 80) - low - 1))
        boxes = np.hstack([low, high]).astype(float)
        write(tmp_path / "chip.xml", boxes)
        found = read_voc(tmp_path / "chip.xml", width=100, height=80)
        np.testing.assert_array_equal(found.boxes, boxes)
        assert found.notes == ()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((10.2, 20.9, 30.1, 45.0), (10, 20, 31, 45)),  # outward
        ((10 - 1e-9, 20, 30 + 1e-9, 45), (10, 20, 30, 45)),  # the noise of sums is not a pixel
        ((-5, 70.5, 12, 99), (0, 70, 12, 80)),
        ((10.2, 20, 10.8, 45), (10, 20, 12, 45)),  # xmin = xmax would be refused when read
        ((99.2, 79.5, 100, 80), (98, 78, 100, 80)),
    ],
)
def test_fractions_are_rounded_outward_within_the_image(
    tmp_path: Path, given: tuple[float, ...], kept: tuple[int, ...]
) -> None:
    write(tmp_path / "chip.xml", [given])
    assert read_voc(tmp_path / "chip.xml", width=100, height=80).boxes.tolist() == [list(map(float, kept))]


@pytest.mark.parametrize(
    "given", [(10, 20, 10, 30), (30, 20, 10, 30), (100, 0, 120, 9), (-9, 0, 0, 9), (np.nan, 0, 9, 9)]
)
def test_boxes_without_area_are_not_written(tmp_path: Path, given: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="no area"):
        write(tmp_path / "chip.xml", [given])
    assert not list(tmp_path.iterdir())


FULL = """<?xml version="1.0"?>
<annotation verified="yes">
  <object><bndbox><ymax> 40.5 </ymax><xmax>30.25</xmax>
      <xmin>
        11.5</xmin><ymin>21</ymin></bndbox>
    <part><name>headwall</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
    <occluded>0</occluded><difficult>1</difficult><pose>Left</pose><name> culvert
    </name></object>
  <source><database>Unknown</database></source><owner><name>someone</name></owner>
  <size><depth>3</depth><height>80</height><width>100.0</width></size>
  <filename>other.png</filename><segmented>0</segmented>
  <object><name>culvert</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>100</xmax><ymax>80</ymax></bndbox></object>
</annotation>
"""


def test_files_of_other_tools_are_read(tmp_path: Path) -> None:
    boxes = [[10.5, 20.0, 30.25, 40.5], [0.0, 0.0, 100.0, 80.0]]
    assert read(tmp_path, FULL) == (boxes, ())
    assert read(tmp_path, b"\xef\xbb\xbf" + FULL.encode()) == (boxes, ())
    assert read(tmp_path, FULL.replace("?>", ' encoding="UTF-16"?>', 1).encode("utf-16")) == (boxes, ())


def test_size_may_be_missing_and_labels_may_be_several(tmp_path: Path) -> None:
    text = annotation(box(2, 3, 4, 5), box(12, 13, 14, 15, "bridge"), size="")
    both = [[1.0, 2.0, 4.0, 5.0], [11.0, 12.0, 14.0, 15.0]]
    assert read(tmp_path, text, ("culvert", "bridge")) == (both, ())


def test_without_an_object_it_is_a_negative(tmp_path: Path) -> None:
    assert read(tmp_path, annotation()) == ([], ())
    assert read(tmp_path, "<annotation/>") == ([], ())


def test_boxes_beyond_the_image_are_clipped_and_listed(tmp_path: Path) -> None:
    boxes, notes = read(tmp_path, annotation(box(5, 5, 9, 9), box(-3, 71, 12.5, 95), box(0, 1, 100, 80)))
    assert boxes == [[4, 4, 9, 9], [0, 70, 12.5, 80], [0, 0, 100, 80]]
    assert notes == (
        "object 2: clipped to the image of 100 x 80 pixels, was xmin=-3 ymin=71 xmax=12.5 ymax=95",
        "object 3: clipped to the image of 100 x 80 pixels, was xmin=0 ymin=1 xmax=100 ymax=80",
    )


LAUGHS = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10))
UNUSABLE = {
    "empty": ("", "is not well-formed XML: no element found"),
    "text": ("xmin 3", "is not well-formed XML"),
    "cut off": (FULL[:300], "is not well-formed XML"),
    "bytes": (b"\x89PNG\r\n\x00\x01", "is not well-formed XML"),
    "encoding": ('<?xml version="1.0" encoding="klingon"?><annotation/>', "unknown encoding"),
    "other root": ("<kml/>", "is not a Pascal VOC annotation: its root is <kml>"),
    "doctype": ("<!DOCTYPE annotation><annotation/>", "has a DOCTYPE"),
    "entities": (
        f'<!DOCTYPE a [<!ENTITY e0 "ha">{LAUGHS}]>{annotation(box(1, 1, "&e9;", 9))}', "has a DOCTYPE",
    ),
    "files": ('<!DOCTYPE a [<!ENTITY f SYSTEM "/etc/passwd">]><annotation>&f;</annotation>', "has a DOCTYPE"),
    "too large": (annotation() + " " * 1_000_000, "has more than 1 MB"),
    "size differs": (
        annotation(size="<size><width>80</width><height>100</height></size>"),
        "is of an image of 80 x 100 pixels, the image has 100 x 80",
    ),
    "size is no number": (annotation(size="<size><width>wide</width></size>"), "no number in <width>: 'wide'"),
    "size is empty": (annotation(size="<size/>"), "the size has no number in <width>: ''"),
    "inverted": (annotation(box(30, 5, 10, 9)), "object 1 has an inverted box: xmin=30 ymin=5 xmax=10 ymax=9"),
    "upside down": (annotation(box(3, 9, 10, 5)), "inverted box"),
    "no width": (annotation(box(3, 5, 3, 9)), "object 1 has a box without area: xmin=3 ymin=5 xmax=3 ymax=9"),
    "no height": (annotation(box(3, 5, 9, 5)), "without area"),
    "right of it": (annotation(box(101, 5, 120, 9)), "outside of the image of 100 x 80 pixels: xmin=101"),
    "above it": (annotation(box(1, -9, 20, 0)), "outside of the image"),
    "label": (annotation(box(1, 1, 9, 9), box(1, 1, 9, 9, "dam")), "object 2 has the label 'dam', expected"),
    "no label": (annotation("<object/>"), "object 1 has the label ''"),
    "no box": (annotation("<object><name>culvert</name></object>"), "object 1 has no <bndbox>"),
    "no xmax": (annotation(box(1, 1, "", 9)), "object 1 has no number in <xmax>: ''"),
    "nan": (annotation(box(1, "nan", 9, 9)), "no number in <ymin>: 'nan'"),
    "infinite": (annotation(box(1, 1, "1e999", 9)), "no number in <xmax>"),
    "lines": (annotation(box(1, 1, "a\nb", 9)), "no number in <xmax>: 'a b'"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_cannot_be_used_says_why_in_one_line(tmp_path: Path, text: str | bytes, reason: str) -> None:
    start = time.process_time()
    with pytest.raises(UnusableAnnotation) as error:
        read(tmp_path, text)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200
    assert time.process_time() - start < 1  # nothing was expanded


def test_a_missing_file_is_unusable_too(tmp_path: Path) -> None:
    with pytest.raises(UnusableAnnotation, match="cannot be read: No such file"):
        read_voc(tmp_path / "none.xml", width=100, height=80)
    with pytest.raises(UnusableAnnotation, match="is not a file"):
        read_voc(tmp_path, width=100, height=80)
