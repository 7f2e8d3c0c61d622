"""Which chips overlap on the ground, and that they stay on one side of every split."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin
from sklearn.model_selection import StratifiedKFold, train_test_split

from dxc.data.datamodule import ChipDataModule, FolderSource
from dxc.data.folds import Fold, make_folds
from dxc.errors import DataError
from dxc.geo.overlaps import Outline, outline_of, overlap_groups, pixel_m
from tests.conftest import ChipMaker, write_tif

UTM14, UTM15 = CRS.from_epsg(26914), CRS.from_epsg(26915)
X, Y = 500_000, 4_500_000


def _at(x: float, y: float, size: int = 100, crs: CRS = UTM14, pixel: float = 1.0) -> Outline:
    outline = outline_of(crs, from_origin(x, y, pixel, pixel), size, size)
    assert outline is not None
    return outline


def test_an_outline_is_the_ground_without_a_quarter_pixel_at_each_edge() -> None:
    outline = outline_of(UTM14, from_origin(X, Y, 2, 2), 10, 30)
    assert outline is not None
    assert CRS.from_wkt(outline.crs) == UTM14
    assert outline.corners == (
        X + 0.5, Y - 0.5, X + 59.5, Y - 0.5, X + 59.5, Y - 19.5, X + 0.5, Y - 19.5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dx", "dy", "together"),
    [
        (3, 0, True),  # the two pipes of one crossing
        (99, 99, True),  # one pixel shared
        (99.4, 0, True),
        (99.6, 0, False),  # rounding, not ground
        (100, 0, False),  # neighbours of a grid
        (100, 100, False),
        (0, -99, True),
        (250, 0, False),
    ],
)
def test_any_shared_ground_counts_and_a_seam_does_not(dx: float, dy: float, together: bool) -> None:
    groups = overlap_groups([_at(X, Y), _at(X + dx, Y + dy)])
    assert groups.tolist() == ([0, 0] if together else [0, 1])


def test_chips_are_linked_over_others_and_numbered_as_they_come() -> None:
    """0, 2 and 5 are a chain whose ends do not touch, 1 and 4 overlap, and 3 has no georeference."""
    chips = [
        _at(X, Y), _at(X + 5000, Y), _at(X + 60, Y), None, _at(X + 5000, Y + 10), _at(X + 120, Y), None,
    ]  # fmt: skip
    groups = overlap_groups(chips)
    assert groups.tolist() == [0, 1, 0, 2, 1, 0, 3] and groups.dtype == np.int64
    assert overlap_groups([]).tolist() == []
    assert overlap_groups([None, None]).tolist() == [0, 1]


def test_chips_of_other_crs_and_pixel_sizes_are_compared_on_the_ground() -> None:
    """At 96 degrees west, where zones 14 and 15 meet, x = 755,000 in zone 14 is near x = 245,000 in zone 15."""
    from rasterio.warp import transform

    (x,), (y,) = transform(UTM14, UTM15, [755_000], [Y])
    here, there = _at(755_000, Y), _at(x + 30, y, crs=UTM15)
    far = _at(x + 3000, y, crs=UTM15)
    same_numbers = _at(755_000, Y, crs=UTM15)  # 500 km further east
    coarse = _at(
        755_000 - 590, Y, size=60, pixel=10
    )  # 600 m: its last column of pixels lies under the first chip
    chips = [here, there, far, same_numbers, coarse]
    assert overlap_groups(chips).tolist() == [0, 0, 1, 2, 0]


def test_a_turned_chip_is_its_turned_outline() -> None:
    turned = Affine.translation(X, Y) @ Affine.rotation(45) @ Affine.scale(1, -1)
    diamond = outline_of(UTM14, turned, 100, 100)  # corners X, Y; X + 141, Y; X + 71, Y + 71; X + 71, Y - 71
    assert overlap_groups([diamond, _at(X + 110, Y + 150)]).tolist() == [
        0,
        1,
    ]  # their boxes meet, they do not
    assert overlap_groups([diamond, _at(X + 60, Y + 60)]).tolist() == [0, 0]


def test_a_crs_that_is_not_on_the_earth_is_compared_with_itself() -> None:
    local = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    chips = [_at(0, 0, crs=local), _at(X, Y), _at(50, 0, crs=local), _at(X + 50, Y)]
    assert overlap_groups(chips).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (None, from_origin(X, Y, 1, 1)),
        (CRS(), from_origin(X, Y, 1, 1)),
        (UTM14, Affine.identity()),
        (UTM14, Affine(0, 0, X, 0, 0, Y)),
        (UTM14, Affine(1, 0, float("nan"), 0, -1, Y)),
        (UTM14, Affine(float("inf"), 0, X, 0, -1, Y)),
    ],
    ids=["no CRS", "empty CRS", "identity", "no area", "NaN", "infinite"],
)
def test_no_outline_without_a_place(crs: CRS | None, transform: Affine) -> None:
    assert outline_of(crs, transform, 20, 20) is None


# ------------------------------------------------------------------------------------------- in the cache


def _place(root: Path, name: str, x: float, y: float, **options: object) -> None:
    """Write the chip REGION_CLASS_NUMBER again at another place."""
    region, klass, _ = name.split("_")
    rng = np.random.default_rng(len(name))
    place = {"transform": from_origin(x, y, 1, 1)} | options
    write_tif(
        root / region / f"{region}DEM" / klass / f"{name}.tif",
        rng.normal(300, 1, (1, 20, 20)).astype("f4"),
        **place,
    )
    write_tif(
        root / region / f"{region}Aer" / klass / f"{name}.tif",
        rng.integers(1, 99, (4, 20, 20), "u1"),
        **place,
    )


def _datamodule(root: Path, **options: object) -> ChipDataModule:
    source = FolderSource(str(root), check_georeference=bool(options.pop("check_georeference", True)))
    datamodule = ChipDataModule(
        source,
        channels=["dem", "nir"],
        size=20,
        cache_dir=str(root.parent / "cache"),
        progress=False,
        **options,
    )
    datamodule.prepare_data()
    return datamodule


def _crossed(groups: np.ndarray, folds: list[Fold]) -> int:
    """Chips that validate while another chip of their group trains."""
    return sum(int(np.isin(groups[fold.val], groups[fold.train]).sum()) for fold in folds)


@pytest.fixture
def twins(make_chips: ChipMaker) -> Path:
    """20 crossings have two pipes 3 m apart, each with a chip of 20 m. 40 chips without a crossing lie alone."""
    root = make_chips(per_class=40)
    for number in range(40):
        _place(root, f"NE_T_{number:03d}", X + 500 * (number // 2) + 3 * (number % 2), Y + 50_000)
    return root


def test_twin_pipes_share_a_fold(twins: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        datamodule = _datamodule(twins)
    cache, folds = datamodule.cache, datamodule.folds
    assert cache is not None
    assert [cache.groups[cache.names.index(f"NE_T_{n:03d}")] for n in (0, 1, 2, 3)] == [40, 40, 41, 41]
    assert _crossed(cache.groups, folds) == 0
    assert sorted(np.concatenate([fold.val for fold in folds])) == list(range(80))
    assert [(len(fold.val), cache.labels[fold.val].sum()) for fold in folds] == [(16, 8)] * 5
    for fold in folds:
        assert sorted([*fold.train, *fold.val]) == list(range(80))
    assert (
        "40 of 80 chips overlap another on the ground: they form 20 groups of up to 2 chips that stay in one fold"
        in caplog.messages
    )
    # as it was: most have their twin in training
    alone = make_folds(cache.labels, cache.regions)
    assert _crossed(cache.groups, alone) >= 20


def test_twin_pipes_share_the_side_of_a_holdout(twins: Path) -> None:
    datamodule = _datamodule(twins, split="holdout")
    (fold,) = datamodule.folds
    assert datamodule.cache is not None and fold.name == "holdout"
    assert _crossed(datamodule.cache.groups, [fold]) == 0
    assert (len(fold.val), datamodule.cache.labels[fold.val].sum()) == (16, 8)


def test_a_chip_without_a_crossing_counts_too(make_chips: ChipMaker) -> None:
    root = make_chips(per_class=10)
    _place(root, "NE_F_003", X + 7000 + 5, Y - 5)  # over NE_F_007
    _place(root, "NE_T_004", X + 2000 - 15, Y)  # over NE_F_002
    datamodule = _datamodule(root)
    assert datamodule.cache is not None
    groups, names = datamodule.cache.groups, datamodule.cache.names
    assert groups[names.index("NE_F_003")] == groups[names.index("NE_F_007")]
    assert groups[names.index("NE_T_004")] == groups[names.index("NE_F_002")]
    assert len(set(groups.tolist())) == 18
    assert _crossed(groups, datamodule.folds) == 0


def test_without_overlaps_folds_are_the_published_ones(make_chips: ChipMaker) -> None:
    """The folds are exactly those of StratifiedKFold and train_test_split, with or without groups."""
    datamodule = _datamodule(make_chips(regions=("NE", "CA"), per_class=15))
    assert datamodule.cache is not None
    labels = datamodule.cache.labels
    assert datamodule.cache.groups.tolist() == list(range(60))
    expected = StratifiedKFold(5, shuffle=True, random_state=42).split(labels, labels)
    for fold, (train, val) in zip(datamodule.folds, expected, strict=True):
        np.testing.assert_array_equal(fold.train, train)
        np.testing.assert_array_equal(fold.val, val)
    (fold,) = make_folds(labels, datamodule.cache.regions, groups=np.arange(60)[::-1], split="holdout")
    train, val = train_test_split(np.arange(60), test_size=0.2, stratify=labels, random_state=42)
    np.testing.assert_array_equal(fold.train, np.sort(train))
    np.testing.assert_array_equal(fold.val, np.sort(val))


def test_chips_without_a_place_are_alone_and_counted(
    make_chips: ChipMaker, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_chips(per_class=10)
    for number in range(3):
        _place(root, f"NE_T_{number:03d}", X, Y, crs=None)
    datamodule = _datamodule(root)
    assert datamodule.cache is not None and datamodule.cache.unplaced == 3
    assert len(set(datamodule.cache.groups.tolist())) == 20
    (line,) = [text for text in caplog.messages if "where they lie" in text]
    assert line.startswith("3 of 20 chips do not say where they lie (no CRS or no georeference)")


def test_places_that_are_wrong_can_be_left_out_of_it(
    make_chips: ChipMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """All chips claim one place, as some tools write them."""
    root = make_chips(per_class=10)
    for klass in "FT":
        for number in range(10):
            _place(root, f"NE_{klass}_{number:03d}", X, Y)
    with pytest.raises(
        DataError, match=r"overlaps join 20 of 20 chips into one group.*source.check_georeference=false"
    ):
        _datamodule(root)
    caplog.clear()
    datamodule = _datamodule(root, check_georeference=False)
    assert datamodule.cache is not None and datamodule.cache.unplaced == 0
    assert len(set(datamodule.cache.groups.tolist())) == 20 and len(datamodule.folds) == 5
    assert not caplog.messages


# ------------------------------------------------------------------------------------------- folds of groups


@pytest.mark.parametrize("split", ["kfold", "holdout"])
@pytest.mark.parametrize("seed", range(5))
def test_random_groups_are_never_torn_and_classes_stay_even(
    split: str, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(0, 2, 300), rng.integers(0, 120, 300)
    folds = make_folds(labels, ["A"] * 300, groups=groups, split=split, seed=seed)
    assert _crossed(groups, folds) == 0
    for fold in folds:
        assert fold.val.dtype == np.int64
        assert (np.diff(fold.val) > 0).all() and (np.diff(fold.train) > 0).all()
        for label in (0, 1):
            assert (labels[fold.val] == label).sum() / (labels == label).sum() == pytest.approx(0.2, abs=0.04)
    again = make_folds(labels, ["A"] * 300, groups=groups, split=split, seed=seed)
    other = make_folds(labels, ["A"] * 300, groups=groups, split=split, seed=seed + 100)
    assert [fold.val.tolist() for fold in folds] == [fold.val.tolist() for fold in again]
    assert [fold.val.tolist() for fold in folds] != [fold.val.tolist() for fold in other]
    assert not caplog.messages  # that is even enough


def test_a_pixel_on_the_ground_is_as_large_as_every_chip_says() -> None:
    feet, degrees = CRS.from_epsg(2264), CRS.from_epsg(4326)
    size = (100, 100)
    assert pixel_m([_at(X, Y), _at(X + 0.3, Y - 7.7, crs=UTM15)], [size, size]) == 1.0
    assert pixel_m([_at(X, Y, size=40, pixel=0.6)], [(40, 40)]) == 0.6
    assert pixel_m([_at(X, Y, crs=feet, pixel=2.0)], [size]) == 0.609601  # US survey feet
    turned = outline_of(UTM14, Affine.translation(X, Y) @ Affine.rotation(30) @ Affine.scale(3, -3), 20, 50)
    assert pixel_m([turned], [(20, 50)]) == 3.0
    # what is not known, or differs
    oblong = outline_of(UTM14, from_origin(X, Y, 1, 1.2), 100, 100)
    assert pixel_m([oblong], [size]) is None
    assert pixel_m([_at(X, Y), _at(X, Y, pixel=1.02)], [size, size]) is None
    assert pixel_m([_at(-97, 41, crs=degrees, pixel=1e-5)], [size]) is None
    assert pixel_m([_at(X, Y), None], [size, size]) is None
    assert pixel_m([], []) is None


def test_one_chip_more_than_its_share_is_only_rounding(caplog: pytest.LogCaptureFixture) -> None:
    """With 6 crossings in 5 folds, one fold has 2, which is a third."""
    groups = [*range(29), 0]
    folds = make_folds([0] * 23 + [1] * 6 + [0], ["A"] * 30, groups=groups)
    assert sorted(sum(23 <= i < 29 for i in fold.val) for fold in folds) == [1, 1, 1, 1, 2]
    assert not caplog.messages


def test_a_group_that_is_most_of_the_chips_is_said_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    labels = np.arange(100) % 2
    groups = np.where(np.arange(100) < 50, 0, np.arange(100))
    folds = make_folds(labels, ["A"] * 100, groups=groups)
    assert _crossed(groups, folds) == 0 and sorted(len(fold.val) for fold in folds) == [10, 10, 10, 10, 60]
    assert (
        "a fold validates 60 % of a class instead of 20 %, because overlaps join 50 of 100 chips"
        in caplog.text
    )
    caplog.clear()
    (fold,) = make_folds(labels, ["A"] * 100, groups=groups, split="holdout")
    assert 10 <= len(fold.val) <= 14 and not caplog.text  # the group trains, and another fold is even enough
    groups = np.where(np.arange(100) < 94, 0, np.arange(100))
    with pytest.raises(
        DataError, match=r"data.split=kfold needs 5 parts .*94 of 100 chips into one group.*Lower data.folds"
    ):
        make_folds(labels, ["A"] * 100, groups=groups)
    with pytest.raises(DataError, match="data.split=kfold needs 5 parts"):  # fewer groups than folds
        make_folds(labels, ["A"] * 100, groups=np.arange(100) // 50)
    assert len(make_folds(labels, ["A"] * 100, groups=np.arange(100) // 50, folds=2)) == 2


def test_three_hundred_folds() -> None:
    labels = np.arange(1200) % 2
    folds = make_folds(labels, ["A"] * 1200, folds=300)
    assert [folds[0].name, folds[255].name, folds[-1].name] == ["fold1", "fold256", "fold300"]
    assert [len(fold.val) for fold in folds] == [4] * 300
    assert sorted(np.concatenate([fold.val for fold in folds])) == list(range(1200))


def test_regions_that_overlap_validate_together(caplog: pytest.LogCaptureFixture) -> None:
    """B links A and C. D is apart, although its own chips overlap."""
    regions = list("AAABBBCCCDDDEEE")
    labels = [0, 1, 0] * 5
    groups = [0, 1, 2, 2, 3, 4, 4, 5, 6, 7, 7, 7, 8, 9, 10]
    folds = make_folds(labels, regions, groups=groups, split="region")
    assert [fold.name for fold in folds] == ["A and B and C", "D", "E"]
    assert [fold.val.tolist() for fold in folds] == [list(range(9)), [9, 10, 11], [12, 13, 14]]
    assert folds[1].train.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14]
    assert caplog.messages == ["regions A, B, C overlap on the ground: they validate together, as one fold"]
    with pytest.raises(DataError, match="two separate regions, but chips of A, B overlap on the ground"):
        make_folds([0, 1, 0, 1], list("AABB"), groups=[0, 1, 1, 2], split="region")
