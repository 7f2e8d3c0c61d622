"""The metadata of an exported file, and the predictor: from raw bands it computes the same as training."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rasterio
import torch
from torch import nn

from dxc.data.bands import fixed_constants
from dxc.data.cache import ChipCache, Recipe, open_cache
from dxc.deploy import predictor as module
from dxc.deploy.export import export_any_size, export_onnx
from dxc.deploy.metadata import FORMAT, KEY, METADATA_BYTES, Metadata, read_metadata
from dxc.deploy.predictor import Predictor
from dxc.errors import ConfigError, DataError, ExportError
from dxc.models.resnet import ResNet
from dxc.models.sppnet import SppNet
from tests.conftest import ChipMaker

SIZE = 24
CHANNELS = {
    3: ("red", "green", "blue"),
    4: ("red", "green", "blue", "nir"),
    5: ("dem", "red", "green", "blue", "nir"),
    7: ("dem", "red", "green", "blue", "nir", "ndwi", "ndvi"),
}
BANDS = ("red", "green", "blue", "nir")
Bands = dict[str, np.ndarray]


def _network(channels: int, *, detector: bool = False) -> nn.Module:
    """A network with weights as after training, so that answers differ from chip to chip."""
    torch.manual_seed(channels)
    model = SppNet(channels, features=16) if detector else ResNet(channels, width=4)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 2)
    for head in (model.presence, model.box) if detector else ():
        nn.init.normal_(head.weight, std=0.3)
    return model.eval()


def _exported(path: Path, recipe: Recipe, *, detector: bool = False) -> tuple[nn.Module, Path]:
    """A network and its file, with the preprocessing of the recipe."""
    model, count = _network(len(recipe.channels), detector=detector), len(recipe.channels)
    fixed: dict[str, Any] = {}
    if recipe.normalise == "fixed":
        fixed = fixed_constants(recipe.channels, "uint8")
        fixed["local_mean_sigma"] = 25 if "dem" in recipe.channels else None
    metadata = Metadata(channels=recipe.channels, normalise=recipe.normalise, repair=recipe.repair, **fixed)
    if recipe.size == "any":
        return model, export_any_size(model, path, in_channels=count, metadata=metadata).path
    exported = export_onnx(model, path, in_channels=count, size=recipe.size, metadata=metadata, check=False)
    return model, exported.path


def _raw(root: Path, cache: ChipCache, number: int) -> Bands:
    """The raw bands in the GeoTIFFs of one chip."""
    region, klass = cache.regions[number], "FT"[cache.labels[number]]
    name = f"{klass}/{cache.names[number]}.tif"
    with rasterio.open(root / region / f"{region}DEM" / name) as raster:
        dem = raster.read(1)
    with rasterio.open(root / region / f"{region}Aer" / name) as raster:
        return {"dem": dem, **dict(zip(BANDS, raster.read(), strict=True))}


def _stacked(chips: list[Bands]) -> Bands:
    return {name: np.stack([chip[name] for chip in chips]) for name in chips[0]}


def _edited(path: Path, **changes: object) -> Path:
    """A copy of a file whose metadata says something else."""
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == KEY:
            content = json.loads(entry.value) | changes
            entry.value = json.dumps({key: value for key, value in content.items() if value is not None})
    changed = path.with_name(f"changed-{path.name}")
    onnx.save(model, changed)
    return changed


@pytest.mark.parametrize("detector", [False, True])
@pytest.mark.parametrize("normalise", ["per_chip", "per_column", "fixed", "none"])
@pytest.mark.parametrize("count", CHANNELS)
def test_raw_chips_give_what_training_computes(
    count: int, normalise: str, detector: bool, make_chips: ChipMaker, tmp_path: Path
) -> None:
    """The predictor gets the GeoTIFFs, and torch gets the cache that training reads."""
    root = make_chips(per_class=3, size=SIZE, boxes=detector)
    dark = root / "NE/NEAer/T/NE_T_000.tif"
    with rasterio.open(dark, "r+") as raster:  # where an index is 0/0
        photo = raster.read()
        photo[:, 2:5, 2] = 0
        raster.write(photo)
    repair = "reference" if normalise == "per_column" else "mean"
    recipe = Recipe(CHANNELS[count], normalise=normalise, repair=repair, size=SIZE, boxes=detector)
    cache = open_cache(root, recipe, cache_dir=tmp_path / "cache", progress=False)
    model, path = _exported(tmp_path / "m.onnx", recipe, detector=detector)
    prepared = torch.from_numpy(cache.images(range(len(cache))))
    with torch.inference_mode():
        answer = model(prepared)
    raw = _stacked([_raw(root, cache, number) for number in range(len(cache))])

    predictor = Predictor(path)
    np.testing.assert_array_equal(predictor.preprocess(raw), prepared.numpy())
    prediction = predictor.predict(raw, batch_size=4)  # the last batch is smaller
    assert prediction.classes == ("no crossing", "crossing")
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1, atol=1e-6)
    if detector:
        expected = answer.presence.sigmoid().numpy()
        np.testing.assert_allclose(prediction.boxes, answer.box.numpy(), rtol=0, atol=1e-5)
    else:
        expected = answer.softmax(dim=1)[:, -1].numpy()
        np.testing.assert_allclose(prediction.probabilities, answer.softmax(dim=1).numpy(), rtol=0, atol=1e-5)
        assert prediction.boxes is None
    np.testing.assert_allclose(prediction.presence, expected, rtol=0, atol=1e-5)
    if normalise != "none":  # raw elevations drown everything else
        assert np.ptp(expected) > 1e-3


def test_a_file_for_any_size(make_chips: ChipMaker, tmp_path: Path) -> None:
    root = make_chips(per_class=4, size=[(20, 20), (18, 31)], boxes=True)
    recipe = Recipe(CHANNELS[7], size="any", boxes=True)
    cache = open_cache(root, recipe, cache_dir=tmp_path / "cache", progress=False)
    model, path = _exported(tmp_path / "m.onnx", recipe, detector=True)
    predictor = Predictor(path)
    assert predictor.metadata.size == "any"
    for number in range(len(cache)):
        with torch.inference_mode():
            answer = model(torch.from_numpy(cache.images([number])))
        prediction = predictor.predict(_raw(root, cache, number))
        np.testing.assert_allclose(prediction.presence, answer.presence.sigmoid(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(prediction.boxes, answer.box, rtol=0, atol=1e-5)
    small = {name: np.ones((15, 40)) for name in predictor.metadata.bands}
    with pytest.raises(DataError, match="images of 15 x 40 pixels .* takes 16 x 16 to 4096 x 4096"):
        predictor.predict(small)


@pytest.fixture
def chip() -> Bands:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (4, SIZE, SIZE), dtype=np.uint8)
    return {"dem": rng.normal(300, 2, (SIZE, SIZE)), **dict(zip(BANDS, photo, strict=True))}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return _exported(tmp_path / "m.onnx", Recipe(CHANNELS[5], size=SIZE))[1]


def test_names_are_honoured_not_positions(path: Path, chip: Bands) -> None:
    expected = Predictor(path).predict(chip).probabilities
    shuffled = ["nir", "dem", "blue", "green", "red"]
    # neither the order of a mapping nor that of an array matters, nor bands that are not used
    mapping = {"swir": np.zeros(3), **{name: chip[name] for name in shuffled}}
    np.testing.assert_array_equal(Predictor(path).predict(mapping).probabilities, expected)
    array = np.stack([chip[name] for name in shuffled])
    np.testing.assert_array_equal(Predictor(path).predict(array, shuffled).probabilities, expected)
    several = Predictor(path).predict(np.stack([array, array[:, ::-1]]), shuffled).probabilities
    np.testing.assert_allclose(several[0], expected[0], atol=1e-6)
    assert abs(several[1] - expected[0]).max() > 1e-4

    # the file's own order does
    other = _edited(path, channels=["red", "dem", "green", "blue", "nir"])
    text = json.loads(onnx.load(other).metadata_props[0].value)
    other = _edited(
        other, normalisation=text["normalisation"] | {"of": ["red", "dem", "green", "blue", "nir"]}
    )
    changed = Predictor(other).predict(chip).probabilities
    assert abs(changed - expected).max() > 1e-4
    swapped = {**chip, "red": chip["dem"], "dem": chip["red"]}
    np.testing.assert_allclose(Predictor(other).predict(swapped).probabilities, expected, atol=1e-6)


def test_the_number_type_of_raw_bands_does_not_matter(path: Path, chip: Bands) -> None:
    predictor = Predictor(path, threads=2)
    expected = predictor.predict(chip).probabilities
    for kind in (np.uint16, np.int64, np.float64):
        photo = {name: chip[name].astype(kind) for name in BANDS}
        np.testing.assert_array_equal(predictor.predict({**chip, **photo}).probabilities, expected)
    listed = {name: band.tolist() for name, band in chip.items()}
    np.testing.assert_array_equal(predictor.predict(listed).probabilities, expected)
    unmasked = {name: np.ma.masked_array(band) for name, band in chip.items()}
    np.testing.assert_array_equal(predictor.predict(unmasked).probabilities, expected)


def test_no_image_gives_no_answer(path: Path, tmp_path: Path) -> None:
    nothing = {name: np.zeros((0, SIZE, SIZE)) for name in CHANNELS[5]}
    prediction = Predictor(path).predict(nothing)
    assert prediction.probabilities.shape == (0, 2) and prediction.boxes is None
    _, detector = _exported(tmp_path / "d.onnx", Recipe(CHANNELS[5], size=SIZE), detector=True)
    prediction = Predictor(detector).predict(nothing)
    assert prediction.boxes is not None and prediction.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dem": None, "nir": None}, "bands dem, red, green, blue, nir; missing are dem, nir"),
        ({"red": np.zeros((SIZE, SIZE + 1))}, r"need one shape, .* not dem \(1, 24, 24\), red \(1, 24, 25\)"),
        ({"red": np.zeros((2, SIZE, SIZE))}, "bands of one image need one shape"),
        ({"red": np.zeros(SIZE)}, r"band red has the shape \(24,\), not \(H, W\)"),
        ({"red": np.zeros((SIZE, SIZE), bool)}, "band red is of type bool"),
        ({"red": np.zeros((SIZE, SIZE), complex)}, "band red is of type complex128"),
        ({"red": np.full((SIZE, SIZE), "7")}, "band red is of type <U1"),
        ({"red": [[1], [1, 2]]}, "band red: not an array"),
        ({"dem": np.full((SIZE, SIZE), np.nan)}, "band dem: 576 of 576 values are NaN or infinite"),
        ({"dem": np.ma.masked_less(np.eye(SIZE), 1)}, "band dem: 552 of 576 pixels are masked"),
    ],
)
def test_bands_that_cannot_be_fed_are_refused(
    changes: dict[str, object], says: str, path: Path, chip: Bands
) -> None:
    given = {name: band for name, band in (chip | changes).items() if band is not None}
    with pytest.raises(DataError, match=says):
        Predictor(path).predict(given)


def test_arrays_and_arguments_that_cannot_be_fed_are_refused(path: Path, chip: Bands) -> None:
    predictor, array = Predictor(path), np.zeros((5, SIZE, SIZE))
    small = {name: band[:20, :22] for name, band in chip.items()}
    with pytest.raises(DataError, match="images of 20 x 22 pixels .* takes 24 x 24 alone"):
        predictor.predict(small)
    with pytest.raises(DataError, match="needs the name of each"):
        predictor.predict(array)
    with pytest.raises(DataError, match="needs the name of each"):
        predictor.predict(array, ["dem", "red", "red", "blue", "nir"])
    with pytest.raises(DataError, match=r"2 names \(dem, red\) need an array .* not \(5, 24, 24\)"):
        predictor.predict(array, ["dem", "red"])
    with pytest.raises(DataError, match="names belong to an array of bands"):
        predictor.predict(chip, ["dem"])
    with pytest.raises(ConfigError, match="batch_size must be a whole number"):
        predictor.predict(chip, batch_size=0)
    with pytest.raises(ConfigError, match="provider=tpu is unknown; choose one of cpu, cuda"):
        Predictor(path, provider="tpu")
    with pytest.raises(ConfigError, match="threads must be a whole number of at least 1"):
        Predictor(path, threads=0)


def test_files_that_cannot_be_fed_are_refused(path: Path, tmp_path: Path) -> None:
    foreign = export_onnx(_network(5), tmp_path / "foreign.onnx", in_channels=5, size=SIZE).path
    with pytest.raises(
        ExportError, match="does not say how it is fed: it has no metadata under the key 'dxc'"
    ):
        Predictor(foreign)
    with pytest.raises(ExportError, match="no such file"):
        Predictor(tmp_path / "none.onnx")
    for content, says in ((b"", "is empty"), (b"not a network", "cannot be read as an ONNX file")):
        (tmp_path / "broken.onnx").write_bytes(content)
        with pytest.raises(ExportError, match=says):
            Predictor(tmp_path / "broken.onnx")

    model = onnx.load(path)
    twice = onnx.ModelProto()
    twice.CopyFrom(model)
    twice.metadata_props.add(key=KEY, value="{}")
    onnx.save(twice, tmp_path / "twice.onnx")
    with pytest.raises(ExportError, match="it has 2 metadata under the key"):
        Predictor(tmp_path / "twice.onnx")
    onnx.save(model, tmp_path / "beside.onnx", save_as_external_data=True, location="weights.bin")
    with pytest.raises(ExportError, match="names other files with weights"):
        Predictor(tmp_path / "beside.onnx")
    model = onnx.load(path)
    del model.graph.node[3:]
    onnx.save(model, tmp_path / "cut.onnx")
    with pytest.raises(ExportError, match="ONNX Runtime cannot run it"):
        Predictor(tmp_path / "cut.onnx")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": FORMAT + 1}, "it is of format 2, and this version of dxc reads 1"),
        ({"format": None}, "it is of format None"),
        ({"channels": ["dem", "red", "green", "blue", "swir"]}, "unknown channel 'swir'"),
        ({"channels": None}, "channels: Field required"),
        ({"channels": ["dem"]}, "its normalisation is not what this version"),
        ({"normalise": "zscore"}, "normalise: String should match pattern"),
        ({"normalise": "fixed"}, "normalise=fixed needs 5 numbers of mean, and it has none"),
        (
            {"normalise": "fixed", "mean": [1.0] * 5, "std": [0.0] * 5},
            "std.0: Input should be greater than 0",
        ),
        ({"mean": [1.0]}, "normalise=per_chip needs no numbers of mean, and it has 1"),
        ({"normalise": "per_column"}, "its normalisation is not what this version of dxc computes with"),
        ({"normalisation": {"formula": "x"}}, "its normalisation is not what this version"),
        ({"size": [24]}, "size"),
        ({"size": [24, 25]}, "its metadata says .* and the network in it has"),
        ({"size": "24"}, "size"),
        ({"classes": ["no crossing", "crossing", "bridge"]}, "its metadata says"),
        ({"pixel_m": float("nan")}, "pixel_m"),
        ({"pixel_m": -1}, "pixel_m"),
        ({"trial": "../../etc"}, "trial"),
        ({"commit": "; rm"}, "commit"),
        ({"outputs": ["scores", "scores"]}, "outputs are scores, scores"),
    ],
)
def test_metadata_that_cannot_be_are_refused(changes: dict[str, object], says: str, path: Path) -> None:
    with pytest.raises(ExportError, match=says):
        Predictor(_edited(path, **changes))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", "it is no JSON object"),
        ("{", "its metadata cannot be used"),
        ("[" * 50, "nested deeper than 6 levels"),
        ('{"format":1,"channels":["' + "x" * 200_000 + '"]}', "more than 100,000 characters"),
    ],
)
def test_metadata_are_read_as_data(text: str, says: str) -> None:
    with pytest.raises(ExportError, match=says):
        Metadata.from_json(text, "m.onnx")


KNOWN = {
    "channels": CHANNELS[7],
    "normalise": "per_column",
    "repair": "reference",
    "photo_bands": ("nir", "red", "green", "blue"),
    "pixel_m": 0.5,
    "trial": "0123456789ab",
    "data": "0123456789abcdef",
    "version": "0.1.0",
    "commit": "f" * 40 + "+changes",
}


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    metadata = Metadata(**KNOWN)
    fixed, dynamic = tmp_path / "fixed.onnx", tmp_path / "any.onnx"
    model = _network(7, detector=True)
    export_onnx(model, fixed, in_channels=7, size=(20, 28), metadata=metadata)
    export_any_size(model, dynamic, in_channels=7, metadata=metadata)
    for path, size in ((fixed, (20, 28)), (dynamic, "any")):
        assert read_metadata(onnx.load(path), path).model_dump() == {
            **KNOWN,
            "mean": None,
            "std": None,
            "local_mean_sigma": None,
            "jitter_m": None,
            "fold": None,
            "quantised": None,
            "calibration_images": None,
            "size": size,
            "classes": ("no crossing", "crossing"),
            "outputs": ("presence", "box"),
        }
    plain = {entry.key: entry.value for entry in onnx.load(fixed).metadata_props if entry.key != KEY}
    assert plain == {
        "channels": "dem red green blue nir ndwi ndvi",
        "size (height x width)": "20 x 28",
        "normalise": "per_column",
        "classes": "no crossing, crossing",
    }
    untrained = tmp_path / "untrained.onnx"
    export_onnx(_network(3), untrained, in_channels=3, size=20, metadata=Metadata(channels=CHANNELS[3]))
    text = next(entry.value for entry in onnx.load(untrained).metadata_props if entry.key == KEY)
    assert not {"trial", "data", "version", "commit", "pixel_m"} & json.loads(text).keys()


def test_the_numbers_in_the_file_are_those_of_the_chips(chip: Bands) -> None:
    """Without dxc, the channels of a chip follow from the metadata alone, for steep, flat and almost flat columns."""
    from dxc.data.bands import stack_channels

    said = json.loads(Metadata(**KNOWN).to_json())
    dem = chip["dem"].astype(np.float32)
    dem[:, 3] = 7
    dem[:, 4] = np.float32(0.5) + np.arange(SIZE) % 2 * np.float32(5e-7)
    rule = said["normalisation"]
    assert rule["of"] == ["dem", "red", "green", "blue", "nir"]
    assert rule["formula"] == "x * s + (0 - min * s), s = 1 / (max - min)" and rule["over"] == "image column"
    extent = dem.max(axis=0) - dem.min(axis=0)
    s = 1 / np.where(extent < rule["least_range"], np.float32(rule["smaller_range"]), extent)
    expected = dem * s + (0 - dem.min(axis=0) * s)
    np.testing.assert_array_equal(expected, stack_channels(dem, {}, ["dem"], normalise="per_column")[0])
    assert 0 < np.ptp(expected[:, 4]) < 1e-6
    assert said["indices"]["ndwi"] == "(green - nir) / (green + nir) of raw bands"


@pytest.mark.parametrize("detector", [False, True])
@pytest.mark.parametrize("known", [{"channels": ("dem",)}, KNOWN])
def test_metadata_add_as_many_bytes_to_every_file(known: dict, detector: bool, tmp_path: Path) -> None:
    count = len(known["channels"])
    model = _network(count, detector=detector)
    without = export_onnx(model, tmp_path / "a.onnx", in_channels=count, size=SIZE)
    said = export_onnx(model, tmp_path / "b.onnx", in_channels=count, size=SIZE, metadata=Metadata(**known))
    assert METADATA_BYTES == 1536
    assert round((said.onnx_mb - without.onnx_mb) * 1e6) == METADATA_BYTES


def test_a_file_never_contradicts_its_network(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="its metadata says"):
        export_onnx(
            _network(5),
            tmp_path / "m.onnx",
            in_channels=5,
            size=SIZE,
            metadata=Metadata(channels=CHANNELS[4]),
        )
    with pytest.raises(ExportError, match="its metadata says"):
        classes = ("none", "culvert", "bridge")
        metadata = Metadata(channels=CHANNELS[5], classes=classes)
        export_onnx(_network(5), tmp_path / "m.onnx", in_channels=5, size=SIZE, metadata=metadata)
    assert list(tmp_path.iterdir()) == []


def test_the_example_of_the_module_runs() -> None:
    result = doctest.testmod(module)
    assert result.attempted > 10 and result.failed == 0
