"""python prepare.py, from the command line to chips that can be read as a data source."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from hydra import compose, initialize_config_dir
from rasterio.transform import from_origin

from dxc.config.compose import resolved
from dxc.data.layout import scan
from dxc.errors import DxcError
from dxc.geo.chips import cut_from_config
from dxc.geo.voc import read_voc

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


def test_from_files_to_a_data_source(folder: Path) -> None:
    done = prepare(folder, *FILES, "out=chips", "region=NE")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "NE: 2 chips with a crossing, 2 without, in EPSG:26915",
        "folder: chips/NE",
        "1 point left out, see chips/NE/left_out.csv:",
        "  1 chip not inside the DEM and the photo",
        "next: python train.py source=chips source.root=chips",
    ]
    again = prepare(folder, *FILES, "out=chips", "region=12", "crs=EPSG:26915", "progress=false")
    assert again.returncode == 0, again.stderr
    manifest = scan(folder / "chips")
    assert not manifest.bad
    assert [(chip.region, chip.name, chip.label) for chip in manifest.chips] == [
        (region, f"{region}_{label}_{i:05d}", int(label == "T"))
        for region in ("12", "NE") for label in "FT" for i in (1, 2)
    ]  # fmt: skip


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
        assert done.stdout.splitlines()[-1] == (
            "next: python train.py model=sppnet source=chips source.root=chips"
        )
        annotations = sorted((folder / "chips").rglob("*.xml"))
        assert [path.name for path in annotations] == [f"NE_T_0000{i}.xml" for i in found]
        read = [read_voc(path, width=100, height=100).boxes.tolist() for path in annotations]
        assert read == list(found.values())
    done = prepare(folder, *FILES, "out=big", "region=NE", "boxes=height_m", "size_m=256")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (
        "next: python train.py model=sppnet source=chips source.root=big data.size=256"
    )


def test_errors_are_one_message_without_a_trace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them as commands, the others by the call that a command is."""
    monkeypatch.chdir(folder)
    for number, (arguments, message) in enumerate((
        (("dem=dem.tif",), "no value for crossings, photo, region"),
        ((*FILES, "region=NE", "dem=none.tif"), "DEM none.tif: no such file"),
        ((*FILES, "region=NE", "size_m=wide"), "size_m=wide cannot work"),
        ((*FILES, "region=NE", "overwrite=perhaps"), "overwrite=perhaps cannot work"),
        ((*FILES, "region=NE", "photo_bands=[red,green,blue]", "photo=dem.tif"), "is float32"),
        ((*FILES, "region=NE", "dem_units=yards"), "dem_units=yards is not a known unit"),
        ((*FILES, "region=NE", "boxes=wide"), "has no column wide; it has width_m, height_m"),
        ((*FILES, "region=NE", "boxes=-5"), "boxes=-5 cannot work"),
        ((*FILES, "region=NE", "near=roads.gpkg"), "near roads.gpkg: no such file"),
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
                cut_from_config(config)
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
