"""Which files make which chip."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dxc.data.layout import scan
from dxc.errors import DataError


def _touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def test_published_and_flat_layout_give_the_same_chips(tmp_path: Path) -> None:
    published = _touch(
        tmp_path / "a",
        "NE_WFBB/NEWFBB_DEM/F/2.tif",
        "NE_WFBB/NEWFBB_DEM/T/1.tif",
        "NE_WFBB/NEWFBB_Aer/F/2.tif",
        "NE_WFBB/NEWFBB_Aer/T/1.tif",
    )
    flat = _touch(
        tmp_path / "b",
        "NE_WFBB/dem/F/2.tif",
        "NE_WFBB/dem/T/1.tif",
        "NE_WFBB/photo/F/2.tif",
        "NE_WFBB/photo/T/1.tif",
    )
    for root in (published, flat):
        chips = scan(root).chips
        assert [(c.region, c.name, c.label) for c in chips] == [("NE_WFBB", "1", 1), ("NE_WFBB", "2", 0)]
        assert all(c.dem.stem == c.photo.stem == c.name for c in chips)


def test_all_four_published_region_folders(tmp_path: Path) -> None:
    for region, dem, aer in (
        ("CA_SSC", "CADEM", "CAAer"),
        ("IL_WR", "ILDEM", "ILAer"),
        ("ND_MR", "NDDEM", "NDAer"),
        ("NE_WFBB", "NEWFBB_DEM", "NEWFBB_Aer"),
    ):
        _touch(tmp_path, f"{region}/{dem}/T/7.tif", f"{region}/{aer}/T/7.tif")
    assert [c.region for c in scan(tmp_path).chips] == ["CA_SSC", "IL_WR", "ND_MR", "NE_WFBB"]


def test_order_is_by_region_then_name_not_by_class(tmp_path: Path) -> None:
    for region in ("B", "A"):
        for klass, name in (("T", "a2"), ("F", "a1"), ("F", "a3")):
            _touch(tmp_path, f"{region}/dem/{klass}/{name}.tif", f"{region}/photo/{klass}/{name}.tif")
    chips = scan(tmp_path).chips
    assert [(c.region, c.name) for c in chips] == [(r, n) for r in "AB" for n in ("a1", "a2", "a3")]
    assert [c.label for c in chips] == [0, 1, 0, 0, 1, 0]


def test_files_that_make_no_chip_are_listed(tmp_path: Path) -> None:
    _touch(
        tmp_path,
        "NE/dem/T/ok.tif",
        "NE/photo/T/ok.tif",
        "NE/dem/T/lonely_dem.tif",
        "NE/photo/F/lonely_photo.tif",
        "NE/dem/F/twice.tif",
        "NE/dem/F/twice.tiff",
        "NE/photo/F/twice.tif",
        "NE/dem/F/both.tif",
        "NE/dem/T/both.tif",
        "NE/photo/F/both.tif",
        "NE/photo/T/both.tif",
        "NE/dem/F/again.tif",
        "NE/photo/F/again.tif",
        "NE/photo/T/again.tif",
        "NE/dem/T/moved.tif",
        "NE/photo/F/moved.tif",
        "NE/dem/T/ok.tif.aux.xml",
    )
    manifest = scan(tmp_path)
    assert [c.name for c in manifest.chips] == ["ok"]
    reasons: dict[str, list[str]] = {}
    for chip in manifest.bad:
        reasons.setdefault(chip.path.stem, []).append(chip.reason)
    assert reasons["lonely_dem"] == ["elevation chip without a photo of the same name"]
    assert reasons["lonely_photo"] == ["photo chip without an elevation chip of the same name"]
    assert reasons["twice"] == ["the name twice occurs 2 times in region NE"] * 2
    assert reasons["both"] == ["the name both occurs 2 times in region NE"] * 4
    assert reasons["again"] == ["the name again occurs 2 times in region NE"] * 2  # its photos
    assert reasons["moved"] == ["in class T, its photo in F"]
    assert [chip.path for chip in manifest.bad] == sorted(chip.path for chip in manifest.bad)


def test_elevation_without_any_photo_is_listed_too(tmp_path: Path) -> None:
    _touch(tmp_path, "NE/dem/T/1.tif", "NE/photo/T/readme.txt")
    manifest = scan(tmp_path)
    assert manifest.chips == ()
    assert [chip.reason for chip in manifest.bad] == ["elevation chip without a photo of the same name"]


def test_annotations_belong_to_photos(tmp_path: Path) -> None:
    _touch(
        tmp_path,
        *(
            f"NE/{kind}/{chip}.tif"
            for kind in ("dem", "photo")
            for chip in ("F/plain", "F/said", "T/boxed", "T/lower.case", "T/bare", "T/moved", "T/twice")
        ),
        "NE/photo/T/half.tif",
        *("NE/photo/F/said.xml", "NE/photo/T/boxed.xml", "NE/photo/T/lower.case.XML", "NE/photo/T/half.xml"),
        *("NE/photo/F/moved.xml", "NE/photo/T/twice.xml", "NE/photo/F/twice.xml", "NE/photo/T/stray.xml"),
        *(
            "NE/photo/T/bare.tif.aux.xml",
            "NE/photo/T/bare.tif.xml",
            "NE/photo/T/._bare.xml",
            "NE/dem/T/bare.xml",
        ),
    )
    plain = scan(tmp_path)
    assert all(chip.annotation is None for chip in plain.chips)
    assert len(plain.chips) == 7
    manifest = scan(tmp_path, boxes=True)
    photos = tmp_path / "NE/photo"
    assert {chip.name: chip.annotation for chip in manifest.chips} == {
        "plain": None,
        "said": photos / "F/said.xml",
        "boxed": photos / "T/boxed.xml",
        "lower.case": photos / "T/lower.case.XML",
    }
    assert sorted((str(chip.path.relative_to(photos)), chip.reason) for chip in manifest.bad) == [
        ("F/moved.xml", "in class F, its photo in T"),
        ("F/twice.xml", "the name twice is annotated 2 times in region NE"),
        ("T/bare.tif", "crossing without boxes: bare.xml is missing beside it"),
        ("T/half.tif", "photo chip without an elevation chip of the same name"),
        ("T/stray.xml", "annotation without a photo of the same name"),
        ("T/twice.xml", "the name twice is annotated 2 times in region NE"),
    ]


@pytest.mark.parametrize("kind", ["dem", "photo"])
def test_elevation_alone_and_photos_alone(tmp_path: Path, kind: str) -> None:
    names = (
        "F/plain.tif",
        "T/boxed.tif",
        "T/boxed.xml",
        "T/bare.tif",
        "F/twice.tif",
        "T/twice.tif",
        "T/stray.xml",
    )
    _touch(tmp_path, *(f"NE/{kind}/{name}" for name in names))
    manifest = scan(tmp_path)
    assert (manifest.has_dem, manifest.has_photo) == (kind == "dem", kind == "photo")
    assert [(c.name, c.label, c.files) for c in manifest.chips] == [
        ("bare", 1, (tmp_path / f"NE/{kind}/T/bare.tif",)),
        ("boxed", 1, (tmp_path / f"NE/{kind}/T/boxed.tif",)),
        ("plain", 0, (tmp_path / f"NE/{kind}/F/plain.tif",)),
    ]
    assert all((chip.dem is None) == (kind == "photo") for chip in manifest.chips)
    assert {chip.reason for chip in manifest.bad} == {"the name twice occurs 2 times in region NE"}
    annotated = scan(tmp_path, boxes=True)
    assert [chip.name for chip in annotated.chips] == ["boxed", "plain"]
    noun = "a photo" if kind == "photo" else "an elevation chip"
    assert f"annotation without {noun} of the same name" in {chip.reason for chip in annotated.bad}


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        ([], "no chips under"),
        (["NE/dem/T/1.tif", "NE/old_dem/T/1.tif"], "2 elevation and 0 photo folders"),
        (
            ["A/dem/T/1.tif", "A/photo/T/1.tif", "B/dem/T/1.tif"],
            "hold different files: A holds elevation and photos, B holds elevation alone",
        ),
        (["notes/readme.txt"], "no chips under"),
        (["NE/dem/T/1.jpg", "NE/photo/T/1.jpg"], "no chips under"),
    ],
)
def test_unusable_roots(tmp_path: Path, paths: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        scan(_touch(tmp_path, *paths))


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"source\.root: there is no folder"):
        scan(tmp_path / "nowhere")


def test_fingerprint_changes_with_every_kind_of_change(tmp_path: Path) -> None:
    root = _touch(tmp_path / "r", *(f"NE/{kind}/T/{n}.tif" for kind in ("dem", "photo") for n in "12"))
    seen = [scan(root).fingerprint]
    assert scan(root).fingerprint == seen[0]

    chip = root / "NE/dem/T/1.tif"
    before = chip.stat()
    chip.write_bytes(b"y")  # same size
    os.utime(chip, ns=(before.st_atime_ns, before.st_mtime_ns))  # same time stamp
    seen.append(scan(root).fingerprint)
    _touch(root, "NE/dem/T/3.tif", "NE/photo/T/3.tif")
    seen.append(scan(root).fingerprint)
    (root / "NE/dem/T/3.tif").unlink()
    seen.append(scan(root).fingerprint)
    shutil.move(root / "NE/photo/T/3.tif", root / "NE/photo/T/4.tif")
    seen.append(scan(root).fingerprint)
    assert len(set(seen)) == len(seen)

    _touch(root, "NE/photo/T/1.xml")
    assert scan(root).fingerprint == seen[-1]  # annotations count where they are wanted
    boxed = scan(root, boxes=True).fingerprint
    _touch(root, "NE/photo/T/2.xml")
    assert len({seen[-1], boxed, scan(root, boxes=True).fingerprint}) == 3
