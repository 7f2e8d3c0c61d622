"""The cache: right numbers, never stale, safe for two builders, every bad chip named."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio

from dxc.data import cache as cache_module
from dxc.data.bands import stack_channels
from dxc.data.cache import ChipCache, Recipe, _cache_key, open_cache
from dxc.errors import BadChipsError, ConfigError, DataError
from tests.conftest import ChipMaker, write_tif

SEVEN = Recipe(("dem", "red", "green", "blue", "nir", "ndwi", "ndvi"), size=20)
FIVE = Recipe(("dem", "red", "green", "blue", "nir"), size=20)


def _open(root: Path, recipe: Recipe = FIVE, **options: object) -> ChipCache:
    options = {"cache_dir": root.parent / "cache", "progress": False} | options
    return open_cache(root, recipe, **options)


def test_rows_are_the_chips_in_order(make_chips: ChipMaker) -> None:
    root = make_chips(regions=("NE", "CA"), per_class=3)
    cache = _open(root, SEVEN)
    assert len(cache) == 12
    assert list(cache.regions) == ["CA"] * 6 + ["NE"] * 6
    assert cache.labels.tolist() == [0, 0, 0, 1, 1, 1] * 2
    for i in (0, 4, 11):
        klass = "FT"[cache.labels[i]]
        region, name = cache.regions[i], cache.names[i]
        with rasterio.open(root / region / f"{region}DEM" / klass / f"{name}.tif") as raster:
            dem = raster.read(1)
        with rasterio.open(root / region / f"{region}Aer" / klass / f"{name}.tif") as raster:
            photo = dict(zip(("red", "green", "blue", "nir"), raster.read(), strict=True))
        np.testing.assert_array_equal(cache.images([i])[0], stack_channels(dem, photo, SEVEN.channels))


def _without(root: Path, kind: str) -> Path:
    for path in [*root.glob(f"*/*{kind}/*/*")]:
        path.unlink()
    for folder in [*root.glob(f"*/*{kind}/*"), *root.glob(f"*/*{kind}")]:
        folder.rmdir()
    return root


@pytest.mark.parametrize("size", [20, "any"])
def test_elevation_alone_and_photos_alone(make_chips: ChipMaker, size: int | str) -> None:
    both = _open(make_chips(per_class=3, boxes=True), Recipe(SEVEN.channels, size=size))
    dem = _open(
        _without(make_chips(per_class=3, root=both.folder / "dem"), "Aer"), Recipe(("dem",), size=size)
    )
    np.testing.assert_array_equal(dem.images(range(6))[:, 0], both.images(range(6))[:, 0])
    root = _without(make_chips(per_class=3, root=both.folder / "photo", boxes=True), "DEM")
    photo = _open(root, Recipe(SEVEN.channels[1:], size=size, boxes=True))
    np.testing.assert_array_equal(photo.images(range(6)), both.images(range(6))[:, 1:])
    assert photo.labels.tolist() == dem.labels.tolist() == both.labels.tolist()
    assert photo.pixel_m == dem.pixel_m == 1
    assert len(set(photo.groups.tolist())) == 6
    assert np.isfinite(photo.boxes(range(6))[:, 0, 0]).tolist() == [False] * 3 + [True] * 3
    assert (dem.photo_bands, photo.photo_bands) == ((), ("red", "green", "blue", "nir"))
    assert len({dem.data_hash, photo.data_hash, both.data_hash}) == 3


def test_a_channel_that_chips_do_not_hold(make_chips: ChipMaker) -> None:
    dem = _without(make_chips(per_class=2), "Aer")
    with pytest.raises(
        DataError, match=r"elevation alone \(dem\).* needs red, green, blue, nir too\. data=1ch fits"
    ):
        _open(dem)
    photo = _without(make_chips(per_class=2, root=dem.parent / "photo"), "DEM")
    with pytest.raises(DataError, match=r"photos alone \(red, .*needs dem too\. data=4ch fits these chips"):
        _open(photo)
    rgb = ("red", "green", "blue")
    with pytest.raises(
        ConfigError, match=r"data=3ch fits the photos, data\.channels=\[dem,red,green,blue\] fits with"
    ):
        Recipe(SEVEN.channels, photo_bands=rgb)


def test_parallel_build_gives_the_same_bytes(make_chips: ChipMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_chips(per_class=40)
    serial = _open(root, cache_dir=root.parent / "serial")
    monkeypatch.setattr(cache_module, "SERIAL_BELOW", 0)
    parallel = _open(root, cache_dir=root.parent / "parallel", workers=2)
    assert (serial.folder / "images.npy").read_bytes() == (parallel.folder / "images.npy").read_bytes()
    assert serial.data_hash == parallel.data_hash


def test_second_opening_reads_no_chip(make_chips: ChipMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_chips()
    first = _open(root)

    def fail(*_: object) -> None:
        raise AssertionError("a chip was read again")

    monkeypatch.setattr(cache_module, "_read_chip", fail)
    assert _open(root).folder == first.folder


def test_other_recipes_make_other_caches(make_chips: ChipMaker) -> None:
    root = make_chips()
    recipes = [
        FIVE,
        SEVEN,
        Recipe(FIVE.channels[::-1], size=20),
        Recipe(FIVE.channels, normalise="none", size=20),
        Recipe(SEVEN.channels, repair="reference", size=20),
    ]
    assert len({_open(root, recipe).folder for recipe in recipes}) == len(recipes)
    assert len({_open(root, recipe).data_hash for recipe in recipes}) == 1  # same chips, whatever the recipe


def test_changed_added_and_removed_chips_make_a_new_cache(make_chips: ChipMaker) -> None:
    root = make_chips()
    caches = [_open(root)]
    changed = root / "NE/NEDEM/T/NE_T_000.tif"
    stat = changed.stat()
    with rasterio.open(changed) as raster:
        place = raster.transform
    write_tif(changed, np.full((1, 20, 20), 5, np.float32), transform=place)
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    caches.append(_open(root))
    assert caches[1].images([5])[0][0].max() == 0  # the constant elevation, not the old one
    write_tif(root / "NE/NEDEM/T/new.tif", np.ones((1, 20, 20), np.float32))
    write_tif(root / "NE/NEAer/T/new.tif", np.ones((4, 20, 20), np.uint8))
    caches.append(_open(root))
    assert len(caches[2]) == 11
    for kind in ("DEM", "Aer"):
        (root / f"NE/NE{kind}/F/NE_F_000.tif").unlink()
    caches.append(_open(root))
    assert len(caches[3]) == 10
    assert len({c.folder for c in caches}) == len({c.data_hash for c in caches}) == 4


def test_data_hash_is_the_same_for_a_copy_elsewhere(make_chips: ChipMaker, tmp_path: Path) -> None:
    a, b = make_chips(root=tmp_path / "a"), make_chips(root=tmp_path / "b")
    assert _open(a, cache_dir=tmp_path / "ca").data_hash == _open(b, cache_dir=tmp_path / "cb").data_hash


def test_names_and_hash_of_a_cache(make_chips: ChipMaker) -> None:
    """The tag dxc.data is a hash of the content. It is the same wherever the chips are read."""
    root = make_chips(per_class=2)
    files = sorted(root.rglob("*.tif"))
    stats = [(path.relative_to(root), path.stat()) for path in files]
    stamps = [f"{p} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}" for p, s in stats]
    fingerprint = hashlib.blake2b("\n".join(stamps).encode(), digest_size=16).hexdigest()
    content = []
    for klass, number in ("F0", "F1", "T0", "T1"):
        name = f"NE_{klass}_00{number}"
        paths = [root / "NE" / f"NE{kind}" / klass / f"{name}.tif" for kind in ("DEM", "Aer")]
        digests = [hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() for path in paths]
        content.append(["NE", name, int(klass == "T"), *digests])
    cache = _open(root)
    assert cache.folder.name == f"chips-{_cache_key(fingerprint, FIVE)}"
    assert cache.data_hash == hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()
    record = json.loads((cache.folder / "cache.json").read_text())
    kept = {"chips", "excluded", "data_hash", "has_photo", "photo_types", "groups", "unplaced", "pixel_m"}
    assert set(record) == kept
    assert {path.name for path in cache.folder.iterdir()} == {"cache.json", "images.npy"}


def _build_in_process(root: Path, queue: multiprocessing.Queue) -> None:
    cache = _open(root, SEVEN)
    queue.put((str(cache.folder), len(cache), float(cache.images(range(len(cache))).sum())))


def test_two_processes_build_one_cache(make_chips: ChipMaker) -> None:
    root = make_chips(per_class=60)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    builders = [context.Process(target=_build_in_process, args=(root, queue)) for _ in range(2)]
    for builder in builders:
        builder.start()
    outcomes = [queue.get(timeout=60) for _ in builders]
    for builder in builders:
        builder.join()
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1] == 120
    left = {path.name for path in (root.parent / "cache").iterdir() if not path.name.endswith(".lock")}
    assert left == {Path(outcomes[0][0]).name}


def test_a_killed_build_is_not_taken_for_a_cache(make_chips: ChipMaker) -> None:
    root = make_chips()
    whole = _open(root).folder
    half = whole.with_name(f".{whole.name}.0123456789abcdef")
    whole.rename(half)
    (half / "cache.json").unlink()
    (half / "images.npy").write_bytes(b"rubbish")
    assert _open(root).images([0]).shape == (1, 5, 20, 20)
    assert not half.exists()


DEM = np.random.default_rng(0).normal(300, 1, (1, 20, 20)).astype(np.float32)
PHOTO = np.random.default_rng(0).integers(1, 255, (4, 20, 20), dtype=np.uint8)


def _with(array: np.ndarray, value: float, pixels: int) -> np.ndarray:
    changed = array.copy()
    changed.reshape(-1)[:pixels] = value
    return changed


SHIFTED = {"transform": rasterio.transform.from_origin(500_050, 4_500_000, 1, 1)}
BAD_CHIPS = {
    "photo bands": ({}, {"array": PHOTO[:3]}, r"has 3 band\(s\), expected 4: red, green, blue, nir"),
    "dem bands": ({"array": PHOTO[:2].astype("float32")}, {}, r"has 2 band\(s\), expected 1: dem"),
    "dem dtype": ({"array": DEM.astype("uint8")}, {}, "is of type uint8, expected one of int16"),
    "complex dem": ({"array": DEM.astype("complex64")}, {}, "is of type complex64"),
    "photo dtype": ({}, {"array": PHOTO.astype("float32")}, "is of type float32, expected one of uint8"),
    "size": ({"array": DEM[:, :15]}, {}, "is 20 x 15 pixels, expected 20 x 20"),
    "crs": ({}, {"crs": "EPSG:26915"}, "photo is in EPSG:26915, its elevation chip in EPSG:26914"),
    "one crs": ({"crs": None}, {}, "its elevation chip in no CRS"),
    "place": ({}, SHIFTED, "photo lies 50 pixels away"),
    "pixel size": (
        {},
        {"array": PHOTO, "transform": rasterio.transform.from_origin(500_000, 4_500_000, 0.6, 0.6)},
        "photo has pixels of 0.6, its elevation chip of 1",
    ),
    "all nodata": (
        {"array": _with(DEM, -9999, 400), "nodata": -9999},
        {},
        r"no elevation anywhere \(all nodata\)",
    ),
    "some nodata": ({"array": _with(DEM, -9999, 7), "nodata": -9999}, {}, "7 of 400 elevations are NaN, inf"),
    "nan": ({"array": _with(DEM, np.nan, 3)}, {}, "3 of 400 elevations are NaN"),
    "infinite": ({"array": _with(DEM, -np.inf, 2)}, {}, "2 of 400 elevations are NaN, infinite"),
    "black photo": ({}, {"array": PHOTO * 0}, "the photo has no data anywhere"),
}


@pytest.mark.parametrize("case", BAD_CHIPS)
def test_bad_chips_stop_or_are_left_out(make_chips: ChipMaker, case: str) -> None:
    dem, photo, says = BAD_CHIPS[case]
    root = make_chips()
    write_tif(root / "NE/NEDEM/T/bad.tif", **({"array": DEM} | dem))
    write_tif(root / "NE/NEAer/T/bad.tif", **({"array": PHOTO} | photo))
    with pytest.raises(BadChipsError, match=says) as caught:
        _open(root)
    assert "source.on_bad_chip=skip" in str(caught.value)
    cache = _open(root, on_bad_chip="skip")
    assert len(cache) == 10
    assert "bad" not in cache.names
    assert [chip.path.name for chip in cache.excluded] == ["bad.tif"]
    with pytest.raises(
        BadChipsError, match=says
    ):  # the cache that skipped does not silence the strict reader
        _open(root)


def test_the_error_lists_every_bad_chip(make_chips: ChipMaker) -> None:
    root = make_chips()
    truncated = root / "NE/NEAer/T/NE_T_001.tif"
    truncated.write_bytes(truncated.read_bytes()[:600])
    (root / "NE/NEDEM/F/NE_F_002.tif").write_text("not a raster")
    (root / "NE/NEDEM/F/NE_F_003.tif").unlink()
    with pytest.raises(BadChipsError) as caught:
        _open(root)
    assert {chip.path.name for chip in caught.value.bad} == {"NE_T_001.tif", "NE_F_002.tif", "NE_F_003.tif"}
    assert str(caught.value).startswith("3 bad chips under")
    assert len(_open(root, on_bad_chip="skip")) == 7


def test_chips_without_any_georeference_are_paired_by_name(make_chips: ChipMaker) -> None:
    root = make_chips()
    write_tif(root / "NE/NEDEM/T/plain.tif", DEM, crs=None)
    write_tif(root / "NE/NEAer/T/plain.tif", PHOTO, crs=None)
    assert "plain" in _open(root).names


def test_georeference_check_can_be_switched_off(make_chips: ChipMaker) -> None:
    root = make_chips()
    write_tif(root / "NE/NEDEM/T/x.tif", DEM)
    write_tif(root / "NE/NEAer/T/x.tif", PHOTO, **SHIFTED)
    assert "x" in _open(root, Recipe(FIVE.channels, size=20, check_georeference=False)).names


def test_three_band_photos(make_chips: ChipMaker, tmp_path: Path) -> None:
    root = tmp_path / "rgb"
    for klass in "FT":
        write_tif(root / "NE/dem" / klass / f"{klass}.tif", DEM)
        write_tif(root / "NE/photo" / klass / f"{klass}.tif", PHOTO[:3])
    recipe = Recipe(("blue", "red"), normalise="none", size=20, photo_bands=("red", "green", "blue"))
    np.testing.assert_array_equal(_open(root, recipe).images([0])[0], PHOTO[[2, 0]])


def test_nothing_left(make_chips: ChipMaker) -> None:
    with pytest.raises(DataError, match="no usable chip is left"):
        _open(make_chips(), Recipe(FIVE.channels, size=100), on_bad_chip="skip")


def test_no_space_before_and_during_the_build(make_chips: ChipMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_chips()
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="cache_dir: no space left.*another disk"):
        _open(root)
    usage.free = 10**12

    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module, "_write_all", write)
    with pytest.raises(DataError, match="no space left"):
        _open(root)
    assert [p.name for p in (root.parent / "cache").iterdir() if p.suffix != ".lock"] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_cache_folder_that_cannot_be_written(make_chips: ChipMaker, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(DataError, match="cannot write"):
        _open(make_chips(), cache_dir=locked / "cache")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"normalise": "minmax"}, "data.normalise: unknown 'minmax'; there are per_chip"),
        ({"repair": "zero"}, "data.repair: unknown 'zero'"),
        ({"size": 0}, "data.size must be"),
        ({"size": "large"}, "data.size must be a number of pixels or any, not 'large'"),
        ({"photo_bands": ("red", "swir")}, "source.photo_bands: unknown band 'swir'"),
    ],
)
def test_bad_recipes(options: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Recipe(**({"channels": ("dem",)} | options))
