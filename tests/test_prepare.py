"""python prepare.py, from the command line to chips that can be read as a data source, and trained on."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rasterio.transform import from_origin

from dxc.config.compose import resolved
from dxc.config.overrides import quoted_value
from dxc.config.plan import Plan
from dxc.data.bands import CHANNEL_SETS
from dxc.data.layout import scan
from dxc.deploy.predictor import Predictor
from dxc.errors import DxcError
from dxc.geo.chips import cut_region
from dxc.geo.voc import read_voc
from dxc.models.registry import NETWORKS
from dxc.pipeline.result import Result

PREPARE = Path(__file__).parents[1] / "prepare.py"
LEFT, TOP = 500_000.0, 5_000_000.0


def prepare(folder: Path, *arguments: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python, str(PREPARE), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """600 x 600 m of terrain at 1 m, a photo at 0.6 m in another CRS, three crossings (one off the edge)."""
    rng = np.random.default_rng(0)
    for name, pixels, step, crs in (
        ("dem", rng.normal(300, 9, (1, 600, 600)).astype(np.float32), 1.0, "EPSG:26915"),
        ("naip", rng.integers(0, 255, (4, 1000, 1000)).astype(np.uint8), 0.6, "EPSG:32615"),
    ):
        count, height, width = pixels.shape
        with rasterio.open(
            tmp_path / f"{name}.tif", "w", driver="GTiff", width=width, height=height, count=count,
            dtype=pixels.dtype, crs=crs, transform=from_origin(LEFT, TOP, step, step), photometric="minisblack",
        ) as file:  # fmt: skip
            file.write(pixels)
    places = [shapely.Point(LEFT + x, TOP - y) for x, y in ((150, 150), (200, 400), (590, 590))]
    columns = {"width_m": [20.0, 30.0, 5.0], "height_m": [12.0, 0.0, 5.0]}
    gpd.GeoDataFrame(columns, geometry=places, crs="EPSG:26915").to_file(tmp_path / "points.gpkg")
    return tmp_path


FILES = ("dem=dem.tif", "photo=naip.tif", "crossings=points.gpkg")


@pytest.mark.long
def test_from_files_to_a_data_source(folder: Path) -> None:
    done = prepare(folder, *FILES, "out=chips", "region=NE")
    assert done.returncode == 0, done.stderr
    *said, following = done.stdout.splitlines()
    assert said == [
        "NE: 2 chips with a crossing, 2 without, in EPSG:26915",
        "folder: chips/NE",
        "1 point left out, see chips/NE/left_out.csv:",
        "  1 chip not inside the DEM and the photo",
        "sheet of chips: chips/NE/chips.jpg",
    ]
    # the two without a crossing overlap: there is no command that could train
    assert following.startswith(
        "next: there are too few chips to train and to validate. data.split=kfold needs 2"
    )
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "chips").rglob("*")}
    complete = prepare(folder, *FILES, "out=chips", "region=NE")
    assert complete.returncode == 0, complete.stderr
    assert complete.stdout.splitlines() == [
        "NE: complete, nothing to do: 2 chips with a crossing, 2 without, in EPSG:26915",
        "folder: chips/NE",
        "sheet of chips: chips/NE/chips.jpg",
        following,
    ]
    assert {path: path.stat().st_mtime_ns for path in (folder / "chips").rglob("*")} == stamps
    again = prepare(folder, *FILES, "out=chips", "region=12", "crs=EPSG:26915", "progress=false")
    assert again.returncode == 0, again.stderr
    manifest = scan(folder / "chips")
    assert not manifest.bad
    assert [(chip.region, chip.name, chip.label) for chip in manifest.chips] == [
        (region, f"{region}_{label}_{i:05d}", int(label == "T"))
        for region in ("12", "NE") for label in "FT" for i in (1, 2)
    ]  # fmt: skip


@pytest.mark.slow
def test_a_sheet_of_the_chips_is_left_and_may_fail(folder: Path) -> None:
    from PIL import Image

    cut = (*FILES, "out=chips", "region=NE", "boxes=20")
    assert prepare(folder, *cut).returncode == 0
    sheet = folder / "chips" / "NE" / "chips.jpg"
    with Image.open(sheet) as drawn:
        assert drawn.width == 1008
    # the sheet is prepare.py's own: it may be replaced, and one that was removed is drawn again
    sheet.unlink()
    assert "sheet of chips: chips/NE/chips.jpg" in prepare(folder, *cut).stdout.splitlines()
    assert sheet.is_file()
    again = prepare(folder, *cut, "seed=1", "overwrite=true")
    assert again.returncode == 0, again.stderr
    assert sheet.is_file()
    # a region of elevation alone cannot be read beside it: no sheet, but all chips and what to do
    alone = prepare(folder, "dem=dem.tif", "crossings=points.gpkg", "out=chips", "region=IL")
    assert alone.returncode == 0, alone.stderr
    *_, said, following = alone.stdout.splitlines()
    assert said.startswith("figure chips was not drawn: DataError: source.root: the regions under chips hold")
    assert following.startswith("next: the regions in chips are trained together, and hold different bands")
    assert len([*(folder / "chips" / "IL").rglob("*.tif")]) == 4


@pytest.mark.long
def test_boxes_from_the_command_line(folder: Path) -> None:
    for boxes, found in (
        ("boxes=20", {1: [[40, 40, 60, 60]], 2: [[40, 40, 60, 60]]}),
        ("boxes=[width_m,height_m]", {1: [[40, 44, 60, 56]]}),  # point 2 is 0 m high
    ):
        done = prepare(folder, *FILES, "out=chips", "region=NE", boxes, "overwrite=true")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[2] == (
            f"boxes: {len(found)}, in an XML file beside each photo in chips/NE/NEAer/T"
        )
        annotations = sorted((folder / "chips").rglob("*.xml"))
        assert [path.name for path in annotations] == [f"NE_T_0000{i}.xml" for i in found]
        read = [read_voc(path, width=100, height=100).boxes.tolist() for path in annotations]
        assert read == list(found.values())


@pytest.mark.long
def test_errors_are_one_message_without_a_trace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them as commands, the others by the call that a command is."""
    monkeypatch.chdir(folder)
    for number, (arguments, message) in enumerate((
        (("dem=dem.tif",), "no value for crossings, region"),
        ((*FILES, "region=NE", "dem=none.tif"), "DEM none.tif: no such file"),
        ((*FILES, "region=NE", "size_m=wide"), "size_m must be"),
        ((*FILES, "region=NE", "overwrite=perhaps"), "overwrite must be"),
        ((*FILES, "region=NE", "photo_bands=[red,green,blue]", "photo=dem.tif"), "is float32"),
        ((*FILES, "region=NE", "dem_units=yards"), "dem_units=yards is not a known unit"),
        ((*FILES, "region=NE", "boxes=wide"), "has no column wide; it has width_m, height_m"),
        ((*FILES, "region=NE", "boxes=-5"), "boxes must be metres, more than 0 and at most size_m=100"),
        ((*FILES, "region=NE", "near=roads.gpkg"), "near roads.gpkg: no such file"),
        (("crossings=points.gpkg", "region=NE"), "neither dem nor photo is given"),
    )):  # fmt: skip
        if number < 2:
            done = prepare(folder, *arguments)
            assert done.returncode == 2
            assert done.stderr.startswith("\nerror: ")
            assert message in done.stderr
            assert "Traceback" not in done.stderr
        else:
            with initialize_config_dir(str(PREPARE.parent / "conf"), version_base="1.3"):
                config = resolved(compose("prepare", overrides=list(arguments)))
            with pytest.raises(DxcError, match=re.escape(message)):
                cut_region(**config)
        assert not (folder / "chips").exists()


def test_help_is_quick_and_names_the_keys(folder: Path) -> None:
    done = prepare(folder, "--help", python=("-X", "importtime"))
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "hydra" in loaded
    assert not loaded & {"torch", "mlflow", "rasterio", "geopandas", "pandas"}  # that is what makes it slow
    assert (
        "python prepare.py dem=dem.tif photo=naip.tif crossings=points.gpkg out=chips region=NE"
        in done.stdout
    )
    for key in ("min_distance_m: 100", "near_share: 0.5", "region: ???"):
        assert key in done.stdout


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A survey of 400 x 400 m: elevations, photos of four and of three bands, and six crossings, in two files."""
    folder = tmp_path_factory.mktemp("survey")
    rng = np.random.default_rng(0)
    for name, count, low, dtype in (
        ("dem", 1, 200, "float32"),
        ("naip", 4, 1, "uint8"),
        ("rgb", 3, 1, "uint8"),
    ):
        pixels = rng.integers(low, low + 50, (count, 400, 400)).astype(dtype)
        with rasterio.open(
            folder / f"{name}.tif", "w", driver="GTiff", width=400, height=400, count=count, dtype=dtype,
            crs="EPSG:26915", transform=from_origin(LEFT, TOP, 1, 1), photometric="minisblack",
        ) as file:  # fmt: skip
            file.write(pixels)
    places = [shapely.Point(LEFT + x, TOP - y) for x in (60, 150, 240) for y in (80, 300)]
    frame = gpd.GeoDataFrame(geometry=places, crs="EPSG:26915")
    frame.to_file(folder / "points.gpkg")
    degrees = frame.to_crs(4326).geometry
    frame.assign(Latitude=degrees.y, Longitude=degrees.x).drop(columns="geometry").to_csv(
        folder / "points.csv"
    )
    return folder


BOTH = ("dem=dem.tif", "photo=naip.tif")
RGB = ("dem=dem.tif", "photo=rgb.tif", "photo_bands=[red,green,blue]")
CASES = {
    "plain": ([*BOTH], "source=chips source.root={out} data=7ch"),
    "photo_bands": (
        [*RGB],
        "source=chips source.root={out} 'source.photo_bands=[red,green,blue]' 'data.channels=[dem,red,green,blue]'",
    ),
    "boxes": ([*BOTH, "boxes=8"], "model=sppnet source=chips source.root={out} data=7ch"),
    "boxes and photo_bands": (
        [*RGB, "boxes=8"],
        "model=sppnet source=chips source.root={out} 'source.photo_bands=[red,green,blue]' "
        "'data.channels=[dem,red,green,blue]'",
    ),
    "elevation alone": (["dem=dem.tif"], "source=chips source.root={out} data=1ch"),
    "elevation alone and boxes": (
        ["dem=dem.tif", "boxes=8"],
        "model=sppnet source=chips source.root={out} data=1ch",
    ),
    "photo alone": (["photo=naip.tif"], "source=chips source.root={out} data=4ch"),
    "photo of three bands alone": (
        ["photo=rgb.tif", "photo_bands=[red,green,blue]"],
        "source=chips source.root={out} 'source.photo_bands=[red,green,blue]' data=3ch",
    ),
}
SMALL_CHIPS = ("region=NE", "size_m=32", "min_distance_m=30", "seed=1", "progress=false")
LITTLE = [
    "trainer.max_epochs=1", "data.batch_size=4", "hardware.predictors=[]", "hardware.measure=false", "profile=none",
    "progress=false",
]  # fmt: skip


@pytest.fixture
def train(
    store_file: Path, tmp_path: Path, survey: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Result]:
    """Runs the command that prepare.py printed, as its shell and Hydra read it."""
    from hydra import compose, initialize_config_dir

    from dxc.pipeline.run import run

    def run_printed(said: str) -> Result:
        command = shlex.split(said.splitlines()[-1].removeprefix("next: "))
        assert command[:2] == ["python", "train.py"]
        little = [*LITTLE, "model.features=16" if "model=sppnet" in command else "model.width=4"]
        places = [f"cache_dir={tmp_path}/cache", f"tracking.uri=sqlite:///{store_file}"]
        monkeypatch.chdir(survey)
        with initialize_config_dir(str(PREPARE.parent / "conf"), version_base="1.3"):
            config = compose("train", overrides=[*command[2:], *little, *places])
        return run(Plan.of(config), tmp_path / "run")

    return run_printed


QUICK = ("boxes and photo_bands", "elevation alone")


@pytest.mark.long
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in QUICK else [pytest.mark.slow]) for case in CASES]
)
def test_the_printed_command_runs(case: str, survey: Path, train: Callable[[str], Result]) -> None:
    arguments, expected = CASES[case]
    out = case.replace(" ", "_")
    done = prepare(survey, *arguments, "crossings=points.csv", f"out={out}", *SMALL_CHIPS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"next: python train.py {expected.format(out=out)} data.size=32"
    result = train(done.stdout)
    assert len(result.predictions) == 12
    said = Predictor(result.onnx).metadata
    assert said.bands == said.channels[: len(said.bands)]
    assert said.photo_bands == tuple(band for band in said.bands if band != "dem")


@pytest.mark.long
def test_the_printed_command_runs_whatever_the_folder_is_called(
    survey: Path, train: Callable[[str], Result]
) -> None:
    out = """it's "my", {chips} = ${x} $HOME"""
    done = prepare(survey, *BOTH, "crossings=points.gpkg", f"out={quoted_value(out)}", *SMALL_CHIPS)
    assert done.returncode == 0, done.stderr
    assert (survey / out / "NE").is_dir()
    train(done.stdout)


@pytest.mark.slow
def test_the_printed_command_is_for_all_regions(survey: Path, train: Callable[[str], Result]) -> None:
    def cut(region: str, *arguments: str) -> str:
        given = (
            "dem=dem.tif",
            "crossings=points.gpkg",
            "out=all",
            *SMALL_CHIPS,
            f"region={region}",
            *arguments,
        )
        done = prepare(survey, *given)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    cut("A", "boxes=8")
    # one of them has no boxes: no detector; another size or other bands: no command, but what to do
    said = cut("B", "max_positives=3", "seed=2")
    assert said == "next: python train.py source=chips source.root=all data=1ch data.size=32"
    assert len(train(said).predictions) == 18
    said = cut("C", "size_m=40")
    assert "chips of different sizes (A: 32 m, B: 32 m, C: 40 m)" in said and "train.py" not in said
    shutil.rmtree(survey / "all" / "B")
    said = cut("C", "size_m=40", "boxes=8", "overwrite=true")
    assert said == "next: python train.py model=sppnet source=chips source.root=all data=1ch data.size=any"
    train(said)
    said = cut("C", "photo=naip.tif", "overwrite=true")
    assert "hold different bands (A: dem, C: dem red green blue nir)" in said and "train.py" not in said


def test_the_channel_sets_are_those_of_conf() -> None:
    options = {
        path.stem: OmegaConf.load(path).channels
        for path in (PREPARE.parent / "conf/data").glob("*ch.yaml")  # the others are no chips
    }
    assert {name: tuple(channels) for name, channels in options.items()} == CHANNEL_SETS
    assert all(
        (PREPARE.parent / f"conf/model/{each.space}.yaml").is_file()
        for each in NETWORKS.values()
        if each.space
    )
