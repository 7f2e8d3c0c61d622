"""Files that claim gigabytes, are not files, or are gone: each is one bad chip, and the others are read.

And disks that are full, caches that were damaged, folders that may not be read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dxc.data import cache as cache_module
from dxc.data.cache import ChipCache, Recipe, open_cache
from dxc.errors import BadChipsError, ConfigError, DataError
from dxc.geo.chips import cut_region
from dxc.geo.formats import raster_file
from tests.conftest import ChipMaker, write_tif
from tests.data.hostile import DEFLATE, HOSTILE, write_tiff

ROOT = Path(__file__).parents[2]
MAX_MB = 500
RECIPE = Recipe(("dem", "nir"), size=20)
ANY = Recipe(("dem", "nir"), size="any")
PHOTO = np.random.default_rng(0).integers(1, 255, (4, 20, 20), dtype=np.uint8)


def _open(root: Path, recipe: Recipe = RECIPE, **options: object) -> ChipCache:
    options = {"cache_dir": root.parent / "cache", "progress": False, "on_bad_chip": "skip"} | options
    return open_cache(root, recipe, **options)


def _in_a_process_of_its_own(script: str, *arguments: object) -> tuple[str, float]:
    """Run a Python script. Returns its output and its peak resident memory in MB (1e6 bytes)."""
    script += (
        "\nimport re, sys\n"
        "print('peak', re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, int(done.stderr.split()[-1]) * 1024 / 1e6


READ = """
import json, sys, warnings
from dxc.data.cache import Recipe, open_cache
warnings.simplefilter("ignore")
size = sys.argv[3] if sys.argv[3] == "any" else int(sys.argv[3])
cache = open_cache(
    sys.argv[1], Recipe(("dem", "nir"), size=size), cache_dir=sys.argv[2], on_bad_chip="skip", progress=False
)
print(json.dumps({"names": cache.names, "bad": {chip.path.stem: chip.reason for chip in cache.excluded}}))
"""


@pytest.mark.parametrize("size", [20, "any"])
def test_each_hostile_file_is_one_bad_chip_and_takes_no_memory(
    make_chips: ChipMaker, tmp_path: Path, size: int | str
) -> None:
    root = make_chips(per_class=2)
    for name, (arguments, _) in HOSTILE.items():
        write_tiff(root / "NE/NEDEM/T" / f"{name}.tif", **arguments)  # type: ignore[arg-type]
        write_tif(root / "NE/NEAer/T" / f"{name}.tif", PHOTO)
    assert (root / "NE/NEDEM/T/huge tile.tif").stat().st_size < 300
    assert (root / "NE/NEDEM/T/deflate bomb.tif").stat().st_size < 2e6
    recipe = READ.replace("size=size)", "size=size, check_georeference=False)")
    printed, peak_mb = _in_a_process_of_its_own(recipe, root, tmp_path / "cache", size)
    found = json.loads(printed)
    assert peak_mb < MAX_MB
    good = {name for name, (_, says) in HOSTILE.items() if says is None}
    assert set(found["names"]) == good | {"NE_F_000", "NE_F_001", "NE_T_000", "NE_T_001"}
    assert set(found["bad"]) == set(HOSTILE) - good
    for name, reason in found["bad"].items():
        assert re.search(str(HOSTILE[name][1]), reason), (name, reason)


def test_a_photo_of_huge_blocks_of_four_bands_is_refused(make_chips: ChipMaker) -> None:
    """Bands interleaved by pixel are unpacked together: 8000 x 8000 x 4."""
    root = make_chips(per_class=2)
    photo = root / "NE/NEAer/T/NE_T_000.tif"
    write_tiff(photo, bands=4, bits=8, kind=1, tile=8000, compression=DEFLATE, block=b"x")
    (bad,) = _open(root, Recipe(("dem", "nir"), size=20, check_georeference=False)).excluded
    assert bad.path == photo and "blocks of 8000 x 8000 pixels take 256 MB each" in bad.reason


def test_a_raster_of_huge_blocks_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """Open the file as prepare.py opens rasters."""
    path = write_tiff(tmp_path / "dem.tif", width=3000, height=3000, tile=32_000)
    script = (
        "import sys\nfrom pathlib import Path\nfrom dxc.geo.formats import raster_file\n"
        "from dxc.errors import DataError\n"
        "try:\n    raster_file('DEM', Path(sys.argv[1])).open().read()\nexcept DataError as error:\n    print(error)"
    )
    printed, peak_mb = _in_a_process_of_its_own(script, path)
    assert "blocks of 32000 x 32000 pixels take 4,096 MB each" in printed and "TILED=YES" in printed
    assert peak_mb < MAX_MB
    fine = write_tiff(tmp_path / "fine.tif", width=5000, height=5000, rows_per_strip=1)
    with raster_file("DEM", fine).open() as raster:
        assert raster.shape == (5000, 5000)


def test_chips_have_an_upper_size(tmp_path: Path) -> None:
    assert Recipe(("dem",), size=4096).size == 4096
    with pytest.raises(ConfigError, match="data.size=4097: a chip has 4096 x 4096 at most"):
        Recipe(("dem",), size=4097)
    none = tmp_path / "none"
    with pytest.raises(ConfigError, match="size_m must be a whole number of metres, 2 to 4096, not 4097"):
        cut_region(dem=none, photo=none, crossings=none, out=none, region="NE", size_m=4097)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def _rubbish(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(3000))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nothing"))


def _endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(20 * 10**9)


NO_RASTERS: dict[Callable[[Path], None], str] = {
    _empty: r"is empty \(0 bytes\)",
    _truncated: "cannot be read as a GeoTIFF",
    _rubbish: "cannot be read as a GeoTIFF",
    _folder: "is not a file",
    _pipe: "is not a file",
    _link_to_nothing: "cannot be read: No such file",
    _endless: "is not a file",
    _sparse: "has 20,000 MB, more than a chip's 268 MB",
}


@pytest.mark.parametrize("recipe", [RECIPE, ANY], ids=["size=20", "size=any"])
@pytest.mark.parametrize("kind", ["NEDEM", "NEAer"])
@pytest.mark.parametrize("spoil", NO_RASTERS, ids=lambda spoil: spoil.__name__)
def test_what_is_no_raster_is_one_bad_chip(
    make_chips: ChipMaker, spoil: Callable[[Path], None], kind: str, recipe: Recipe
) -> None:
    root = make_chips(per_class=2)
    path = root / "NE" / kind / "T" / "NE_T_001.tif"
    spoil(path)
    cache = _open(root, recipe)
    assert cache.names == ("NE_F_000", "NE_F_001", "NE_T_000")
    ((bad, reason),) = cache.excluded
    assert bad == path and re.search(NO_RASTERS[spoil], reason), reason
    with pytest.raises(BadChipsError, match=NO_RASTERS[spoil]):
        _open(root, recipe, on_bad_chip="raise")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_empty, "is not well-formed XML: no element found"),
        (_folder, "is not a file"),
        (_pipe, "is not a file"),
        (_link_to_nothing, "cannot be read: No such file"),
    ],
    ids=["empty", "folder", "pipe", "link to nothing"],
)
def test_what_is_no_annotation_is_one_bad_chip(
    make_chips: ChipMaker, spoil: Callable[[Path], None], says: str
) -> None:
    root = make_chips(per_class=2, boxes=True)
    path = root / "NE/NEAer/T/NE_T_001.xml"
    spoil(path)
    ((bad, reason),) = _open(root, Recipe(("dem", "nir"), size=20, boxes=True)).excluded
    assert bad == path and says in reason


def test_chips_that_go_while_they_are_read(make_chips: ChipMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_chips(per_class=2, boxes=True)
    scan = cache_module.scan

    def scan_then_lose(*arguments: object, **options: object) -> object:
        manifest = scan(*arguments, **options)  # type: ignore[arg-type]
        for name in ("NEDEM/F/NE_F_000.tif", "NEAer/T/NE_T_000.tif", "NEAer/T/NE_T_001.xml"):
            (root / "NE" / name).unlink()
        return manifest

    monkeypatch.setattr(cache_module, "scan", scan_then_lose)
    cache = _open(root, Recipe(("dem", "nir"), size=20, boxes=True))
    assert cache.names == ("NE_F_001",)
    assert [chip.path.name for chip in cache.excluded] == ["NE_T_000.tif", "NE_T_001.xml", "NE_F_000.tif"]
    assert all("No such file" in chip.reason for chip in cache.excluded)


# ------------------------------------------------------------------------------------------- caches


def _text(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "cache.json").write_text(text) and None  # type: ignore[func-returns-value]


def _edited(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        record = json.loads((folder / "cache.json").read_text()) | changes
        (folder / "cache.json").write_text(json.dumps({k: v for k, v in record.items() if v is not None}))

    return edit


def _cut_images(folder: Path) -> None:
    images = folder / "images.npy"
    images.write_bytes(images.read_bytes()[:-4])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "emptied": _text(""),
    "cut off": _text('{"chips": [[0, "NE"'),
    "not text": lambda folder: (folder / "cache.json").write_bytes(b"\xff\xfe\x00") and None,  # type: ignore[func-returns-value]
    "a list": _text("[]"),
    "deep": _text("[" * 100_000),
    "without groups": _edited(groups=None),
    "too few groups": _edited(groups=[0]),
    "rows that are not there": _edited(chips=[[n, "NE", f"c{n}", 0] for n in (0, 1, 2, 99)], groups=[0, 1, 2, 3]),
    "words for rows": _edited(chips=[["x", "NE", "c", 0]], groups=[0]),
    "no cache.json": lambda folder: (folder / "cache.json").unlink(),
    "no images": lambda folder: (folder / "images.npy").unlink(),
    "empty images": lambda folder: (folder / "images.npy").write_bytes(b"") and None,  # type: ignore[func-returns-value]
    "images cut off": _cut_images,
    "images of another shape": lambda folder: np.save(folder / "images.npy", np.zeros((4, 3, 20, 20), "f4")),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_built_anew(
    make_chips: ChipMaker, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_chips(per_class=2)
    whole = _open(root)
    images = whole.images(range(4))
    DAMAGES[damage](whole.folder)
    with caplog.at_level(logging.WARNING):
        again = _open(root)
    np.testing.assert_array_equal(again.images(range(4)), images)
    assert (again.names, again.data_hash) == (whole.names, whole.data_hash)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"cache_dir: {whole.folder} is damaged (") and "built again" in line
    caplog.clear()
    _open(root)
    assert not caplog.records


def test_a_cache_that_goes_while_it_is_used_says_what_to_do(make_chips: ChipMaker) -> None:
    cache = _open(make_chips(per_class=2))
    shutil.rmtree(cache.folder)
    with pytest.raises(DataError, match=r"images.npy is gone or damaged .*the same command builds it again"):
        cache.images([0])


# ------------------------------------------------------------------------------------------- disks and rights


def test_a_disk_that_fills_up_under_the_cache(make_chips: ChipMaker, small_disk: Path) -> None:
    """10 chips of 100 x 100 pixels and two channels need 0.8 MB of 1 MB. Then further chips do not fit."""
    root = make_chips(size=100)
    recipe = Recipe(("dem", "nir"), size=100)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(600_000))
    with pytest.raises(
        DataError, match=rf"no space left while building {small_disk}/cache/chips-.*another disk"
    ):
        _open(root, recipe, cache_dir=small_disk / "cache")
    filler.unlink()
    assert len(_open(root, recipe, cache_dir=small_disk / "cache")) == 10
    (small_disk / "filler").write_bytes(bytes(100_000))
    assert len(_open(root, recipe, cache_dir=small_disk / "cache")) == 10  # what is there needs no more room


def test_a_disk_that_is_fuller_than_it_says(
    make_chips: ChipMaker, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes write too: there was room when dxc checked."""
    root = make_chips(size=100)
    (small_disk / "filler").write_bytes(bytes(600_000))
    monkeypatch.setattr(cache_module, "_require_space", lambda folder, needed_bytes: None)
    with pytest.raises(
        DataError, match=rf"no space left while building {small_disk}/cache/chips-.*another disk"
    ):
        _open(root, Recipe(("dem", "nir"), size=100), cache_dir=small_disk / "cache")
    assert [path.suffix for path in (small_disk / "cache").iterdir()] in ([".lock"], [])


@contextlib.contextmanager
def _as_nobody() -> Iterator[None]:
    """Drop root's right to read and write everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder in which everybody may write; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="dxc-test-"))
    folder.chmod(0o777)
    yield folder
    subprocess.run(["chmod", "-R", "u+rwX", folder], check=True)
    shutil.rmtree(folder)


def test_a_chip_that_may_not_be_read_is_one_bad_chip(make_chips: ChipMaker, open_folder: Path) -> None:
    root = make_chips(per_class=2, root=open_folder / "chips")
    (root / "NE/NEDEM/T/NE_T_001.tif").chmod(0)
    with _as_nobody():
        ((bad, reason),) = _open(root, cache_dir=open_folder / "cache").excluded
    assert bad.name == "NE_T_001.tif" and reason == "cannot be read: Permission denied"


@pytest.mark.parametrize("closed", [".", "NE", "NE/NEDEM", "NE/NEAer/F"])
def test_a_folder_that_may_not_be_read_is_named(
    make_chips: ChipMaker, open_folder: Path, closed: str
) -> None:
    root = make_chips(per_class=2, root=open_folder / "chips")
    (root / closed).chmod(0)
    with (
        _as_nobody(),
        pytest.raises(DataError, match=rf"source.root: {root / closed}.* cannot be read .Permission"),
    ):
        _open(root, cache_dir=open_folder / "cache")


def test_a_cache_folder_that_may_not_be_written(make_chips: ChipMaker, open_folder: Path) -> None:
    root = make_chips(per_class=2, root=open_folder / "chips")
    cache_dir = open_folder / "cache"
    cache_dir.mkdir()
    cache_dir.chmod(0o555)
    with (
        _as_nobody(),
        pytest.raises(DataError, match=f"cannot write while building {cache_dir}/chips-.*Permission"),
    ):
        _open(root, cache_dir=cache_dir)
    (open_folder / "file").touch()
    with pytest.raises(DataError, match="cannot write while building"):
        _open(root, cache_dir=open_folder / "file")
    assert len(_open(root, cache_dir=cache_dir)) == 4 if os.geteuid() == 0 else True


def test_a_cache_in_a_folder_that_may_only_be_read_is_used(make_chips: ChipMaker, open_folder: Path) -> None:
    root = make_chips(per_class=2, root=open_folder / "chips")
    cache_dir = open_folder / "cache"
    _open(root, cache_dir=cache_dir)
    cache_dir.chmod(0o555)
    with _as_nobody():
        assert _open(root, cache_dir=cache_dir).images([0]).shape == (1, 2, 20, 20)
