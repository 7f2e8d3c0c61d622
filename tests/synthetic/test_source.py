"""Synthetic watersheds: the checks of a hydrologist, and the same pixels for the same seed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio

from dxc.errors import ConfigError, DataError
from dxc.geo.voc import read_voc
from dxc.synthetic import source as synthetic
from dxc.synthetic.render import Region, build_headwalls, reaches, simulate_region, structure_box_m
from dxc.synthetic.source import REGIONS, RegionFiles, SyntheticSource, make_region, region_files
from dxc.synthetic.terrain import (
    EDGE_M,
    SPACING_M,
    Crossing,
    Line,
    find_streams,
    fractal_terrain,
    resample,
    smooth,
)

CROSSINGS = 6


@pytest.fixture(scope="module", params=[0, 3], ids=["NE", "ND"])
def region(request: pytest.FixtureRequest) -> Region:
    return simulate_region(REGIONS[request.param], CROSSINGS, seed=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> RegionFiles:
    folder = tmp_path_factory.mktemp("regions") / "NE"
    return make_region(REGIONS[0], folder, crossings=CROSSINGS, seed=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSource:
    """32 chips that are built already."""
    source = SyntheticSource(chips=32, seed=5, cache_dir=str(tmp_path_factory.mktemp("cache")), jobs=1)
    source.prepare()
    return source


def on_line(xy: np.ndarray, x: float, y: float) -> tuple[int, float]:
    """Nearest vertex and its distance (m)."""
    away = np.hypot(xy[:, 0] - x, xy[:, 1] - y)
    return int(away.argmin()), float(away.min())


def test_same_seed_same_pixels_and_another_seed_others(region: Region) -> None:
    again = simulate_region(region.spec, CROSSINGS, seed=1)
    other = simulate_region(region.spec, CROSSINGS, seed=2)
    np.testing.assert_array_equal(region.dem, again.dem)
    np.testing.assert_array_equal(region.photo, again.photo)
    assert not np.array_equal(region.dem, other.dem)
    assert not np.array_equal(region.photo, other.photo)


def test_regions_differ_under_one_seed() -> None:
    """Regions that differ only in their names do not share random numbers."""
    twin = replace(REGIONS[0], name="twin")
    a, b = (simulate_region(spec, 1, seed=0) for spec in (REGIONS[0], twin))
    assert a.dem.shape == b.dem.shape
    assert not np.array_equal(a.dem, b.dem)


def test_region_has_as_many_crossings_as_asked_apart_and_inside(region: Region) -> None:
    at = np.array([[c.x, c.y] for c in region.crossings])
    assert len(at) == CROSSINGS
    assert at.min() >= EDGE_M
    assert (np.array(region.dem.shape[::-1]) - at).min() >= EDGE_M
    gaps = np.hypot(*(at[:, None] - at[None]).transpose(2, 0, 1)) + 1e9 * np.eye(len(at))
    assert gaps.min() >= SPACING_M


def test_near_infrared_is_not_marked_as_a_mask(files: RegionFiles) -> None:
    with rasterio.open(files.photo) as photo:
        assert [each.name for each in photo.colorinterp] == ["red", "green", "blue", "undefined"]


def test_roads_and_streams_meet_at_crossings_and_nowhere_else(files: RegionFiles) -> None:
    roads, streams = geopandas.read_file(files.roads), geopandas.read_file(files.streams)
    points = geopandas.read_file(files.crossings)
    assert points.distance(roads.union_all()).max() < 2
    assert points.distance(streams.union_all()).max() < 2
    meetings = geopandas.GeoSeries(
        [roads.union_all().intersection(streams.union_all())], crs=points.crs
    ).explode()
    assert len(meetings) == CROSSINGS
    assert meetings.distance(points.union_all()).max() < 2


def test_elevation_shows_the_road_as_a_dam(region: Region) -> None:
    for c in region.crossings:
        stream = region.streams[c.stream].xy
        here, away = on_line(stream, c.x, c.y)
        assert away < 2
        road_z = region.dem[int(c.y), int(c.x)]
        for side in (-1, 1):
            some = np.clip(here + side * np.arange(4, 11), 0, len(stream) - 1)
            bed = min(region.dem[int(y), int(x)] for x, y in stream[some])
            assert road_z > bed + 0.5


def test_streams_run_downhill_in_channels(region: Region) -> None:
    for stream in region.streams:
        assert stream.z[-1] <= stream.z[0] + 0.5
        assert (np.diff(stream.half_m) > -1e-9).all()  # they widen downstream
    beds = [
        region.dem[int(y), int(x)] - z for s in region.streams for (x, y), z in zip(s.xy, s.z, strict=True)
    ]
    assert np.median(np.abs(beds)) < 0.1


def test_water_and_vegetation_have_their_ndvi(region: Region) -> None:
    red, nir = region.photo[0].astype(float), region.photo[3].astype(float)
    ndvi = (nir - red) / (nir + red)
    assert region.water.mean() > 0.001
    assert (ndvi[region.water] < 0).mean() > 0.95  # in shadow the sensor's noise matters
    assert np.median(ndvi[region.water]) < -0.15
    green = region.photo[1].astype(float)
    vegetation = (green > 1.15 * red) & ~region.water
    assert vegetation.mean() > 0.02
    assert (ndvi[vegetation] > 0).mean() > 0.98
    assert np.median(ndvi[vegetation]) > 0.3


def test_rasters_say_where_and_what_they_are(files: RegionFiles) -> None:
    with rasterio.open(files.dem) as dem, rasterio.open(files.photo) as photo:
        assert dem.crs == photo.crs == "EPSG:26914"
        assert dem.transform == photo.transform
        assert dem.res == photo.res == (1.0, 1.0)
        assert (dem.count, dem.dtypes[0], dem.nodata) == (1, "float32", -9999.0)
        assert photo.dtypes == ("uint8",) * 4
        assert photo.descriptions == ("red", "green", "blue", "nir")
        assert dem.is_tiled and photo.is_tiled
        assert np.isfinite(dem.read(1)).all()
        assert photo.read().min() > 0  # no 0/0 in the indices
    for path in files[2:]:
        assert geopandas.read_file(path).crs == "EPSG:26914"


def test_regions_lie_in_their_utm_zones() -> None:
    assert len({spec.epsg for spec in REGIONS}) == len({spec.name for spec in REGIONS}) == 4
    for spec in REGIONS:
        assert 160_000 < spec.origin[0] < 834_000


@pytest.mark.long
def test_chips_are_as_many_as_asked_with_both_classes(source: SyntheticSource) -> None:
    root = source.prepare()
    assert sorted(p.name for p in root.iterdir()) == sorted(spec.name for spec in REGIONS)
    for spec in REGIONS:
        for label in "TF":
            dems = {p.name for p in (root / spec.name / f"{spec.name}DEM" / label).glob("*.tif")}
            photos = {p.name for p in (root / spec.name / f"{spec.name}Aer" / label).glob("*.tif")}
            assert len(dems) == 4
            assert dems == photos


def test_negatives_keep_100_m_off_every_crossing(source: SyntheticSource) -> None:
    root = source.prepare()
    for spec in REGIONS:
        files = region_files(root.parent / "regions" / spec.name)
        points = geopandas.read_file(files.crossings).union_all()
        for label, nearest, farthest in (("F", 99.0, 1e9), ("T", 0.0, 9.0)):
            for path in (root / spec.name / f"{spec.name}DEM" / label).glob("*.tif"):
                with rasterio.open(path) as chip:
                    centre = geopandas.points_from_xy(*[[v] for v in chip.xy(49.5, 49.5)])[0]
                assert nearest <= points.distance(centre) <= farthest


def test_second_prepare_is_instant(source: SyntheticSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_make_and_cut", lambda *_: pytest.fail("built again"))
    start = time.perf_counter()
    twin = SyntheticSource(chips=32, seed=5, cache_dir=str(source.cache_dir), jobs=2)
    assert twin.prepare() == source.prepare()
    assert time.perf_counter() - start < 0.5


def test_what_shapes_the_chips_names_the_folder() -> None:
    base = SyntheticSource().folder
    assert SyntheticSource(jobs=3, on_bad_chip="skip").folder == base
    for other in (
        {"chips": 8}, {"seed": 1}, {"near_share": 0.5}, {"jitter_m": 0.0}, {"boxes": True}, {"size_m": 101},
    ):  # fmt: skip
        assert SyntheticSource(**other).folder != base  # type: ignore[arg-type]


def test_killed_build_leaves_nothing_that_looks_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_make_and_cut", die)
    source = SyntheticSource(chips=8, cache_dir=str(tmp_path), jobs=1)
    with pytest.raises(KeyboardInterrupt):
        source.prepare()
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chips": 0}, "multiple of 8"),
        ({"chips": 1201}, "multiple of 8"),
        ({"seed": -1}, "seed"),
        ({"jobs": 0}, "jobs"),
        ({"on_bad_chip": "ignore"}, "raise or skip"),
        ({"near_share": 1.1}, "between 0 and 1"),
        ({"jitter_m": 50.0}, "jitter_m=50.0: needs 0 or more and less than half of source.size_m=100"),
        ({"jitter_m": 16.0, "size_m": 32}, "less than half of source.size_m=32"),
        ({"jitter_m": -1.0}, "jitter_m"),
        ({"size_m": 15}, "size_m must be a whole number of at least 16"),
        ({"size_m": 100.5}, "size_m must be a whole number"),
        ({"size_m": 401}, "16 to 400"),
        ({"boxes": "yes"}, "boxes=yes: true or false"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SyntheticSource(**arguments)  # type: ignore[arg-type]


def test_region_is_not_overwritten(files: RegionFiles, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exists already"):
        make_region(REGIONS[0], files.dem.parent, crossings=1, seed=0)
    with pytest.raises(ConfigError, match="at least 1"):
        make_region(REGIONS[0], tmp_path / "new", crossings=0, seed=0)


def test_fractal_ground_has_the_relief_asked_for() -> None:
    flat = replace(REGIONS[0], tilt=0.0)
    ground = fractal_terrain(500, 4.0, flat, np.random.default_rng(0))
    assert ground.std() == pytest.approx(flat.relief_m, rel=1e-3)
    assert ground.mean() == pytest.approx(flat.height_m, abs=0.1)
    assert fractal_terrain(100, 4.0, flat, np.random.default_rng(0)).std() < flat.relief_m
    assert np.abs(np.diff(ground)).mean() < 0.5  # smooth from one 4 m cell to the next


def test_channels_gather_area_downstream() -> None:
    spec = REGIONS[0]
    rng = np.random.default_rng(0)
    filled, streams = find_streams(fractal_terrain(200, 4.0, spec, rng), spec, rng)
    assert filled.shape == (200, 200)
    assert all(s.area_km2 >= spec.stream_area_ha / 100 for s in streams)


def test_smoothing_keeps_the_ends() -> None:
    line = np.cumsum(np.random.default_rng(0).normal(1, 1, (40, 2)), axis=0)
    np.testing.assert_allclose(smooth(line, 3.0)[[0, -1]], line[[0, -1]], atol=1e-9)
    even = resample(np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 7.0]]), 1.0)
    np.testing.assert_allclose(np.hypot(*np.diff(even, axis=0).T), 1.0)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_reaches_make_up_the_share_asked_for(share: float) -> None:
    marks = reaches(100_000, share, np.random.default_rng(0))
    assert marks.mean() == pytest.approx(share, abs=0.05)
    assert np.count_nonzero(np.diff(marks)) < 5_000  # stretches, not single vertices


# ---------------------------------------------------------------- boxes


def crossing(along: tuple[float, float], wall_half_m: float) -> Crossing:
    """A road 8 m wide and a stream at right angles to it."""
    down = np.array([along[1], -along[0]])
    return Crossing(0.0, 0.0, down, np.array(along), 0, road_half_m=4.0, wall_half_m=wall_half_m)


def stream(half_m: float) -> list[Line]:
    return [Line(np.array([[0.0, 0.0], [2.0, 0.0]]), np.zeros(2), np.full(2, half_m), "stream")]


@pytest.mark.parametrize(
    ("along", "wall_half_m", "width", "height"),
    [
        # from the middle across the road: 4 of road, 1.4 + 1.5 of wall, 1 of margin; along it: 5 of wall, 1 of margin
        ((0.0, 1.0), 5.0, 15.8, 12.0),
        ((-1.0, 0.0), 5.0, 12.0, 15.8),
        # at 45 degrees: (5.4 + 5 + 1.5) / sqrt(2) + 1 either way
        ((0.5**0.5, 0.5**0.5), 5.0, 2 * (11.9 * 0.5**0.5 + 1), 2 * (11.9 * 0.5**0.5 + 1)),
        # without walls: half a channel of 1.5 m, 1 of bank, 1 of margin; not less than 8 m
        ((0.0, 1.0), 0.0, 15.8, 8.0),
    ],
)
def test_a_box_holds_road_and_headwalls(
    along: tuple[float, float], wall_half_m: float, width: float, height: float
) -> None:
    found = structure_box_m(crossing(along, wall_half_m), stream(1.5))
    assert found == pytest.approx((width, height))


def test_boxes_hold_the_walls_that_are_painted_and_little_else(region: Region) -> None:
    """The walls are painted again on black, so every light pixel is a wall."""
    photo = np.zeros((4, *region.dem.shape), np.float32)
    points = [replace(c, wall_half_m=0.0) for c in region.crossings]
    build_headwalls(photo, points, np.random.default_rng(0))
    walled = 0
    for c in points:
        width, height = structure_box_m(c, region.streams)
        rows, cols = np.nonzero(photo[0, int(c.y) - 40 : int(c.y) + 40, int(c.x) - 40 : int(c.x) + 40])
        assert (len(rows) > 0) == (c.wall_half_m > 0)
        if len(rows):
            walled += 1
            x, y = cols + int(c.x) - 40 - c.x, rows + int(c.y) - 40 - c.y  # of the pixels' upper left corners
            for low, high, edge in ((x.min(), x.max() + 1, width), (y.min(), y.max() + 1, height)):
                assert -edge / 2 <= low
                assert high <= edge / 2
                assert edge - (high - low) < 6  # two margins, two pixels, and the longer of the walls
    assert walled >= 3


@pytest.fixture(scope="module")
def boxed(source: SyntheticSource) -> SyntheticSource:
    """The same chips with boxes, also built already."""
    boxed = SyntheticSource(
        chips=32, seed=5, cache_dir=str(source.cache_dir), jobs=1, boxes=True, jitter_m=35.0
    )
    boxed.prepare()
    return boxed


def test_boxes_sit_on_the_crossings(boxed: SyntheticSource) -> None:
    root = boxed.prepare()
    assert not list(root.glob("*/*/F/*.xml"))
    offsets = []
    for spec in REGIONS:
        points = geopandas.read_file(region_files(root.parent / "regions" / spec.name).crossings)
        photos = sorted((root / spec.name / f"{spec.name}Aer" / "T").glob("*.tif"))
        for path, point in zip(photos, points.itertuples(), strict=True):
            with rasterio.open(path) as chip:
                col, row = ~chip.transform @ (point.geometry.x, point.geometry.y)
            ((xmin, ymin, xmax, ymax),) = read_voc(path.with_suffix(".xml"), width=100, height=100).boxes
            assert (xmin, ymin) == (np.floor(col - point.width_m / 2), np.floor(row - point.height_m / 2))
            assert (xmax, ymax) == (np.ceil(col + point.width_m / 2), np.ceil(row + point.height_m / 2))
            assert 8 <= min(xmax - xmin, ymax - ymin) <= max(xmax - xmin, ymax - ymin) < 27
            offsets.append((col // 1 - 50, row // 1 - 50))
    assert 20 < np.abs(offsets).max() <= 35
    assert len(set(offsets)) == 16  # not the same shifts in every region


def test_boxes_change_no_terrain(source: SyntheticSource, boxed: SyntheticSource) -> None:
    for spec in REGIONS:
        a, b = (region_files(s.prepare().parent / "regions" / spec.name) for s in (source, boxed))
        assert a.dem.read_bytes() == b.dem.read_bytes()
        assert a.photo.read_bytes() == b.photo.read_bytes()
        assert list(geopandas.read_file(a.crossings).columns) == ["kind", "geometry"]
        assert list(geopandas.read_file(b.crossings).columns) == ["kind", "width_m", "height_m", "geometry"]


def test_large_tiles_show_several_crossings_each_with_its_box(tmp_path: Path) -> None:
    synthetic._make_and_cut(REGIONS[0], tmp_path, 10, 0, 0.9, 80.0, 256, True)
    files = region_files(tmp_path / "regions" / "NE")
    points = geopandas.read_file(files.crossings)
    at = np.column_stack([points.geometry.x, points.geometry.y])
    edges = points[["width_m", "height_m"]].to_numpy()
    counts = []
    for path in sorted((tmp_path / "chips" / "NE").glob("NEAer/?/*.tif")):
        with rasterio.open(path) as chip:
            assert chip.shape == (256, 256)
            centre = np.column_stack(~chip.transform @ at.T)
        inside = ((centre >= 0) & (centre < 256)).all(axis=1)
        if path.parent.name == "F":
            touched = ((centre > -edges / 2) & (centre < 256 + edges / 2)).all(axis=1)
            assert not touched.any()
            continue
        boxes = read_voc(path.with_suffix(".xml"), width=256, height=256).boxes
        for x, y in centre[inside]:
            assert ((boxes[:, :2] <= (x, y)) & (boxes[:, 2:] >= (x, y))).all(axis=1).sum() == 1
        assert len(boxes) >= inside.sum()  # and maybe one whose crossing lies just outside
        counts.append(int(inside.sum()))
    assert len(counts) == 10
    assert max(counts) > 1


@pytest.mark.slow
def test_parallel_builds_of_one_thing_agree(tmp_path: Path) -> None:
    """Of two processes that need the same chips at once, one builds and one waits."""
    import subprocess
    import sys

    code = (
        "from dxc.synthetic.source import SyntheticSource\n"
        "if __name__ == '__main__':\n"
        f"    print(SyntheticSource(chips=8, cache_dir={str(tmp_path)!r}, jobs=2).prepare())\n"
    )
    script = tmp_path / "build.py"
    script.write_text(code)
    runs = [subprocess.Popen([sys.executable, str(script)], stdout=-1) for _ in range(2)]
    roots = {Path(run.communicate(timeout=300)[0].decode().strip()) for run in runs}
    assert len(roots) == 1
    assert len(list(roots.pop().glob("*/*DEM/*/*.tif"))) == 8
    assert not list(tmp_path.glob(".synthetic-*"))


def test_a_command_makes_a_watershed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dxc.synthetic.__main__ import main

    arguments = [
        "dxc.synthetic",
        str(tmp_path / "new" / "one"),
        "--region",
        "IL",
        "--crossings",
        "3",
        "--seed",
        "5",
    ]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    made = region_files(tmp_path / "new" / "one")
    assert len(geopandas.read_file(made.crossings)) == 3
    with rasterio.open(made.dem) as file:
        assert file.crs.to_epsg() == 26916
    assert f"dem={made.dem} photo={made.photo}" in capsys.readouterr().out
    with pytest.raises(SystemExit):  # it is not replaced
        main()
