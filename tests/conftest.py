"""Shared by all tests: tiny real GeoTIFF chips, a browser, and one thread so that parallel tests do not fight."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from filelock import FileLock
from rasterio.transform import from_origin

from dxc.geo.voc import write_voc

ChipMaker = Callable[..., Path]
Once = Callable[[str, Callable[[Path], object]], Path]

# readline, which pytest imports, hands a width of 80 columns to every program that a test starts
for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)
    os.unsetenv(_name)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """once(name, make): a folder that make(folder) filled, once a test run: pytest's other workers wait for it.

    It is for reading: a test that writes takes a copy.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / f"once-{name}"
        done = folder / ".done"
        with FileLock(f"{folder}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


def copy_study(made: Path, folder: Path) -> Path:
    """Copy a folder with an MLflow store, and let its runs name the copies of their artifacts; returns the copy."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (made.as_uri(), folder.as_uri())
            )
    return folder


@pytest.fixture(scope="session")
def _new_store(once: Once) -> Path:
    def make(folder: Path) -> None:
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()

    return once("store", make) / "mlflow.db"


@pytest.fixture
def store_file(tmp_path: Path, _new_store: Path) -> Path:
    """tmp_path/mlflow.db, an MLflow store without runs: a copy, because MLflow takes seconds to make one."""
    return Path(shutil.copy(_new_store, tmp_path))


def write_tif(path: Path, array: np.ndarray, *, crs: str | None = "EPSG:26914", **options: object) -> Path:
    """Write (bands, H, W) as a GeoTIFF with 1 m pixels whose upper left corner is (500000, 4500000) unless given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff",
        "count": array.shape[0],
        "height": array.shape[1],
        "width": array.shape[2],
        "dtype": array.dtype,
        "crs": crs,
        "transform": from_origin(500_000, 4_500_000, 1, 1),
    } | options
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(array)
    return path


@pytest.fixture
def make_chips(tmp_path: Path) -> ChipMaker:
    """make_chips(regions, per_class, size): random chips in the published layout; returns their root.

    Crossing chips have a bright square in the red band and a hump in the elevation: a network can learn it. With
    `boxes` it has a box. Each lies 1 km from the next: no two overlap. A size is pixels, or several (height, width):
    chip by chip in turn, in each class.
    """

    def make(
        regions: tuple[str, ...] = ("NE",),
        per_class: int = 5,
        size: int | Sequence[tuple[int, int]] = 20,
        root: Path | None = None,
        seed: int = 0,
        boxes: bool = False,
    ) -> Path:
        root = root or tmp_path / "chips"
        rng = np.random.default_rng(seed)
        sizes = [(size, size)] if isinstance(size, int) else size
        for row, (region, klass) in enumerate(product(regions, "FT")):
            for number in range(per_class):
                height, width = sizes[number % len(sizes)]
                dem = rng.normal(300, 1, (1, height, width)).astype("float32")
                photo = rng.integers(1, 200, (4, height, width), dtype="uint8")
                name = f"{region}_{klass}_{number:03d}.tif"
                if klass == "T":
                    top, left, bottom, right = height // 3, width // 3, 2 * height // 3, 2 * width // 3
                    dem[0, top:bottom, left:right] += 10
                    photo[0, top:bottom, left:right] = 250
                place = {"transform": from_origin(500_000 + 1000 * number, 4_500_000 - 1000 * row, 1, 1)}
                write_tif(root / region / f"{region}DEM" / klass / name, dem, **place)
                path = write_tif(root / region / f"{region}Aer" / klass / name, photo, **place)
                if klass == "T" and boxes:
                    box, xml = [left, top, right, bottom], path.with_suffix(".xml")
                    write_voc(xml, [box], width=width, height=height, image=name, depth=4)
        return root

    return make


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on a disk of 1 MB of its own."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root, to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; what it draws in WebGL it draws in software, as machines without a screen must."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (no browser of its own)")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium: run .ci/browser-packages")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
        )
        yield browser
        browser.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """The folder for what a browser shows: DXC_SCREENSHOTS, if that is set."""
    folder = Path(os.environ.get("DXC_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
