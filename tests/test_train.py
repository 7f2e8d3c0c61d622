"""train.py end to end, read back from MLflow."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from mlflow.entities import Run
from rasterio.transform import from_origin

from dxc.config.compose import PROJECT_ROOT
from dxc.config.identity import UNRECORDED
from dxc.config.plan import Plan
from dxc.deploy.predictor import Predictor
from dxc.errors import DxcError
from dxc.metrics import METRICS
from dxc.models.resnet import ResNet
from dxc.pipeline.result import Result
from dxc.pipeline.run import run
from tests.conftest import ChipMaker, write_tif

pytestmark = pytest.mark.usefixtures("store_file")

SMALL = ["model.width=4", "data.size=20", "data.batch_size=8", "trainer.max_epochs=2", "data.folds=3"]
# what it costs takes several seconds a run: left to the tests of costs
SMALL += ["hardware.predictors=[]", "hardware.measure=false", "profile=none"]


def _command(root: Path, tmp_path: Path, *overrides: str) -> list[str]:
    return [
        sys.executable,
        "train.py",
        "source=chips",
        f"source.root={root}",
        f"cache_dir={tmp_path}/cache",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        f"hydra.run.dir={tmp_path}/out/${{now:%H-%M-%S-%f}}",
        f"hydra.sweep.dir={tmp_path}/sweep",
        *SMALL,
        *overrides,
    ]


def _train(root: Path, tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        _command(root, tmp_path, *overrides),
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def _train_here(root: Path, tmp_path: Path, *overrides: str) -> Result:
    """Train as train.py does, in this process: it has imported all that a command imports first."""
    given = [part for part in _command(root, tmp_path, *overrides)[2:] if "hydra." not in part]
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=given)
    return run(Plan.of(cfg), tmp_path / "out")


def _runs(tmp_path: Path) -> tuple[MlflowClient, list[Run]]:
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    return client, client.search_runs(experiments, order_by=["attributes.start_time"])


def _assert_fed_as_in_training(root: Path, files: Path, validated: pd.DataFrame) -> None:
    """The exported file answers to raw GeoTIFFs what its fold's validation said of them."""
    predictor = Predictor(files / "model.onnx")
    for chip in validated.itertuples():
        folder, name = root / chip.region, f"{'FT'[chip.label]}/{chip.name}.tif"
        with rasterio.open(folder / f"{chip.region}DEM" / name) as raster:
            bands = {"dem": raster.read(1)}
        with rasterio.open(folder / f"{chip.region}Aer" / name) as raster:
            bands |= dict(zip(("red", "green", "blue", "nir"), raster.read(), strict=True))
        assert predictor.predict(bands).presence[0] == pytest.approx(chip.probability, abs=1e-5)


@pytest.mark.slow
def test_two_equal_runs(make_chips: ChipMaker, tmp_path: Path) -> None:
    """One configuration twice (a plain Hydra multirun): everything of the contract, and the same numbers."""
    root = make_chips(regions=("NE", "CA"), per_class=9)
    done = _train(root, tmp_path, "study=first", "data.folds=3,3", "again=true", "-m")
    assert done.returncode == 0, done.stderr
    client, runs = _runs(tmp_path)
    assert [each.info.status for each in runs] == ["FINISHED"] * 2
    first, second = runs

    expected = {"accuracy", "accuracy_std", "average_precision", "f1", "auroc", "onnx_mb", "params", "macs"}
    expected |= {"fold_score", "fit_seconds", "images_per_second"}
    logged = {name for name in first.data.metrics if name in METRICS}
    assert logged == expected
    curves = {"train_loss", "val_loss", "val_accuracy", *(f"val_accuracy.fold{k}" for k in (1, 2, 3))}
    assert set(first.data.metrics) - logged == curves
    assert first.data.metrics["val_accuracy"] == pytest.approx(first.data.metrics["accuracy"])
    assert not UNRECORDED & {*first.data.params, *first.data.tags}
    ((dataset, _),) = [(each.dataset, each.tags) for each in first.inputs.dataset_inputs]
    source = f"chips of {root.name}"
    assert (dataset.name, dataset.digest) == (source, first.data.tags["dxc.data"])
    assert json.loads(dataset.source)["root"] == str(root)
    assert f"trained on:       {source}\n" in done.stdout
    assert first.data.params["model.width"] == "4"
    assert first.data.params["data.channels"] == "['dem', 'red', 'green', 'blue', 'nir', 'ndwi', 'ndvi']"
    assert client.get_experiment(first.info.experiment_id).name == "first"

    tags = first.data.tags
    for tag in (
        "dxc.trial",
        "dxc.design",
        "dxc.base",
        "dxc.stages",
        "dxc.data",
        "device",
        "mlflow.source.git.commit",
    ):
        assert tags.get(tag), tag
    assert (tags["dxc.study"], tags["dxc.state"], tags["dxc.source"]) == ("first", "finished", source)
    for tag in ("dxc.trial", "dxc.design", "dxc.base", "dxc.stages", "dxc.data"):
        assert tags[tag] == second.data.tags[tag]

    timed = {"fit_seconds", "images_per_second"}
    for name in set(first.data.metrics) - timed:
        assert first.data.metrics[name] == second.data.metrics[name], name

    files = Path(client.download_artifacts(first.info.run_id, ""))
    assert {path.name for path in files.iterdir()} >= {"config.yaml", "model.onnx", "predictions.parquet"}
    every = pd.read_csv(files / "curves.csv")
    ends = every[(every.metric == "val_accuracy") & (every.epoch == 2)].set_index("fold")["value"]
    assert ends.mean() == pytest.approx(first.data.metrics["accuracy"])
    assert ends["fold2"] == pytest.approx(first.data.metrics["val_accuracy.fold2"])
    assert len(every) == 3 * 3 * 2
    predictions = pd.read_parquet(files / "predictions.parquet")
    assert len(predictions) == 36
    assert list(predictions.columns) == ["region", "name", "label", "fold", "probability"]
    by_fold = ((predictions.probability > 0.5) == predictions.label).groupby(predictions.fold).mean()
    assert by_fold.mean() == pytest.approx(first.data.metrics["accuracy"])
    assert by_fold.std(ddof=1) == pytest.approx(first.data.metrics["accuracy_std"])
    assert first.data.metrics["onnx_mb"] == (files / "model.onnx").stat().st_size / 1e6
    _assert_fed_as_in_training(root, files, predictions[predictions.fold == tags["dxc.exported_fold"]])
    assert Predictor(files / "model.onnx").metadata.model_dump(exclude={"version"}, exclude_none=True) == {
        "channels": ("dem", "red", "green", "blue", "nir", "ndwi", "ndvi"),
        "normalise": "per_chip",
        "repair": "mean",
        "photo_bands": ("red", "green", "blue", "nir"),
        "size": (20, 20),
        "pixel_m": 1.0,
        "classes": ("no crossing", "crossing"),
        "outputs": ("scores",),
        "trial": tags["dxc.trial"],
        "data": tags["dxc.data"],
        "commit": tags["mlflow.source.git.commit"],
    }
    for fold in ("fold1", "fold2", "fold3"):
        weights = torch.load(files / f"checkpoints/{fold}.pt", weights_only=True)
        ResNet(7, width=4).load_state_dict(weights)
    config = (files / "config.yaml").read_text()
    assert "in_channels: 7" in config
    assert "${" not in config
    assert "resnet18 k3 s2 p1 w4, 7ch b8" in done.stdout


@pytest.mark.long
def test_a_run_carries_what_its_network_costs(make_chips: ChipMaker, tmp_path: Path) -> None:
    """With the defaults of hardware=cpu, twice: as it should be, and with a device that cannot be measured."""
    root = make_chips(per_class=6)
    defaults = [
        "hardware.predictors=[ort_cpu_xeon]",
        "hardware.measure=true",
        "profile=auto",
        "data.split=holdout",
    ]
    done = _train(root, tmp_path, *defaults, "hardware.affinity=null,[4096]", "-m")
    assert done.returncode == 0, done.stderr
    client, (good, bad) = _runs(tmp_path)
    for run_ in (good, bad):
        assert run_.info.status == "FINISHED"
        assert {"accuracy", "latency_ms", "latency_ms/ort_cpu_xeon", "onnx_mb", "macs"} <= set(
            run_.data.metrics
        )
        assert run_.data.tags["dxc.profile"] == "torch"
        assert run_.data.metrics["profile/torch/share/conv"] > 0
    # a machine that is too busy to be measured says so, and has no latency
    assert "peak_memory_mb" in good.data.metrics
    assert ("measured_latency_ms" in good.data.metrics) == (good.data.tags["dxc.measurement"] == "valid")
    assert not any(name.startswith(("measured", "peak")) for name in bad.data.metrics)
    assert "not measured: " in done.stdout
    assert "hardware.affinity names cores" in done.stdout
    assert "predicted for:    ort_cpu_xeon (onnxruntime 1.31.1, 1 thread, Intel" in done.stdout
    costs = Path(client.download_artifacts(good.info.run_id, "costs"))
    kernels = pd.read_parquet(costs / "kernels.parquet")
    assert kernels["ms"].sum() == pytest.approx(good.data.metrics["latency_ms"])
    assert {"measured_batch1.json", "profile"} <= {path.name for path in costs.iterdir()}
    assert (costs / "profile" / "torch_batch1.json.gz").exists()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_hardware_for_a_gpu_trains_on_the_processor_without_one(
    make_chips: ChipMaker, tmp_path: Path
) -> None:
    done = _train(
        make_chips(per_class=6), tmp_path, "hardware=a100", "hardware.measure=true", "data.split=holdout"
    )
    assert done.returncode == 0, done.stderr
    assert "no GPU here: hardware=a100 trains on the processor" in done.stdout
    assert "not measured: there is no CUDA device here for hardware=a100" in done.stdout
    _, (only,) = _runs(tmp_path)
    assert only.data.tags["hardware"] == "a100"
    assert only.data.params["trainer.precision"].endswith("-mixed")  # what was asked for
    assert only.data.tags["dxc.precision"] in ("32-true", "bf16-mixed")


@pytest.mark.long
def test_left_out_chips_are_an_artifact(make_chips: ChipMaker, tmp_path: Path) -> None:
    root = make_chips(per_class=6)
    (root / "NE/NEDEM/T/NE_T_000.tif").write_text("no raster")
    stopped = _train(root, tmp_path)
    assert stopped.returncode == 2
    assert "1 bad chip under" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    _train_here(root, tmp_path, "source.on_bad_chip=skip", "data.split=holdout", "trainer.max_epochs=1")
    client, (failed, finished) = _runs(tmp_path)
    assert failed.info.status == "FAILED"
    assert "BadChipsError" in Path(client.download_artifacts(failed.info.run_id, "traceback.txt")).read_text()
    listing = pd.read_csv(client.download_artifacts(finished.info.run_id, "excluded_chips.csv"))
    assert listing["path"].str.endswith("NE_T_000.tif").tolist() == [True]
    assert "accuracy_std" not in finished.data.metrics  # one fold has no spread


@pytest.mark.slow
def test_interrupted_run_is_marked_killed(make_chips: ChipMaker, tmp_path: Path) -> None:
    root = make_chips(per_class=6)
    process = subprocess.Popen(
        _command(root, tmp_path, "trainer.max_epochs=100000"),
        cwd=PROJECT_ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("cache/chips-*/cache.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(3)  # into the first fold
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in errors
    assert "Traceback" not in errors
    client, (killed,) = _runs(tmp_path)
    assert killed.info.status == "KILLED"
    assert "Stopped" in Path(client.download_artifacts(killed.info.run_id, "traceback.txt")).read_text()


def _trained(done: subprocess.CompletedProcess) -> list[str]:
    """The folds that a command trained: it says a line for each."""
    return re.findall(r"^(fold\d) \(\d of 3\): ", done.stderr, re.MULTILINE)


@pytest.mark.slow
def test_a_killed_run_goes_on(make_chips: ChipMaker, tmp_path: Path) -> None:
    """kill -9 after the first fold: the same command trains the other two; once more, and it trains none."""
    root, longer = make_chips(per_class=6), "trainer.max_epochs=20"
    killed = subprocess.Popen(_command(root, tmp_path, longer), cwd=PROJECT_ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 200
        while not list(tmp_path.glob("cache/stages/*/fold1.pt")) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        killed.kill()
        killed.wait()
    kept = {path.stem: path.stat().st_mtime_ns for path in tmp_path.glob("cache/stages/*/*.pt")}
    assert list(kept) == ["fold1"]

    done = _train(root, tmp_path, longer)
    assert done.returncode == 0, done.stderr
    assert _trained(done) == ["fold2", "fold3"]
    assert "1 of 3 folds is taken from the cache, trained 20" in done.stdout
    (first,) = tmp_path.glob("cache/stages/*/fold1.pt")
    assert first.stat().st_mtime_ns == kept["fold1"]

    again = _train(root, tmp_path, longer, "kept_gb=0")
    assert again.returncode == 0 and _trained(again) == []
    assert "3 of 3 folds are taken from the cache" in again.stdout
    assert "kept_gb=0: trained folds of 1 design" in again.stdout
    _, runs = _runs(tmp_path)
    assert [run.info.status for run in runs] == [
        "RUNNING",
        "FINISHED",
        "FINISHED",
    ]  # the first could say no word
    one, two = (run.data.metrics for run in runs[1:])
    assert one == two and one["fit_seconds"] > 0
    assert not list(tmp_path.glob("cache/stages/*"))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.kernel=23"], "model.kernel=23 is larger than the padded chip"),
        (["data.channels=[dem,swir]"], "unknown channel 'swir'"),
        (["source.root=nowhere"], "there is no folder nowhere"),
        (["data.folds=50"], "class F has 6 chips, data.split=kfold needs at least 50"),
        (["optimizer.lr=-1"], "optimizer: Invalid learning rate"),
        (["trainer.precision=fp8"], "refuses its arguments"),
        (["optimizer.lr=1e30"], "the training loss is nan after epoch 2"),
        (["trainer.max_epochs=0"], "trainer.max_epochs must be a whole number of at least 1, not 0"),
        (["seed=-1"], "seed must be a whole number of at least 0, not -1"),
        (["data.fold_seed=x"], "data.fold_seed must be a whole number of at least 0, not 'x'"),
        (["data.num_workers=-1"], "data.num_workers must be"),
        (["data.channels=dem"], "data.channels must be a list of names, such as [dem,red], not 'dem'"),
        (["study=.."], "study=.. names a folder"),
        (["study=a/b"], "study=a/b names a folder"),
        (["optimizer._target_=os.system"], "os.system is not allowed"),
        (["hardware.predictors=[nobody]"], "there is no package 'nobody'"),
        (["hardware.threads=0"], "hardware.threads must be a whole number"),
        (["profile=perf"], "profile must be auto, none, torch or nsight, not 'perf'"),
    ],
)
def test_mistakes_get_one_message(
    make_chips: ChipMaker, tmp_path: Path, overrides: list[str], says: str
) -> None:
    root = make_chips(per_class=6)
    with pytest.raises(DxcError, match=re.escape(says)):
        _train_here(root, tmp_path, *overrides)
    # what only reading all chips, or training, can tell is recorded in a run; nothing else opens one
    late = ("class F has 6 chips", "the training loss is nan")
    assert len(_runs(tmp_path)[1]) == says.startswith(late)


@pytest.mark.long
def test_a_mistake_on_the_command_line(make_chips: ChipMaker, tmp_path: Path) -> None:
    done = _train(make_chips(), tmp_path, "model.pool=avg")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: model.pool must be none or max, not 'avg'"


@pytest.mark.parametrize("flag", [["--help"], ["--cfg", "job"]])
def test_help_is_fast_and_says_what_to_type(flag: list[str]) -> None:
    started = time.perf_counter()
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "train.py", *flag],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.perf_counter() - started < 20  # a sanity bound; what is loaded is the test
    loaded = {line.rsplit("|", 1)[-1].strip() for line in shown.stderr.splitlines() if "|" in line}
    assert not loaded & {"torch", "mlflow", "nni", "rasterio", "pytorch_lightning", "pandas", "sklearn"}
    assert "kernel: 3" in shown.stdout
    if flag == ["--help"]:
        assert "python train.py source=chips source.root=DIR" in shown.stdout


@pytest.mark.slow
def test_narrow_networks_train_on_several_threads(make_chips: ChipMaker, tmp_path: Path) -> None:
    """In channels_last torch 2.13.0 corrupts memory here; see dxc.training.trainer."""
    command = _command(make_chips(per_class=9), tmp_path, "model.width=8")
    done = subprocess.run(
        command, cwd=PROJECT_ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )
    assert done.returncode == 0, done.stderr


def test_three_band_photos_train(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for klass in "FT":
        for number in range(5):
            dem = rng.normal(size=(1, 20, 20)).astype("float32")
            photo = rng.integers(1, 255, (3, 20, 20), dtype="uint8")
            place = {"transform": from_origin(100 * number, 1000 * "FT".index(klass), 1, 1)}  # none overlap
            write_tif(tmp_path / f"rgb/NE/dem/{klass}/{klass}{number}.tif", dem, **place)
            write_tif(tmp_path / f"rgb/NE/photo/{klass}/{klass}{number}.tif", photo, **place)
    _train_here(
        tmp_path / "rgb",
        tmp_path,
        "source.photo_bands=[red,green,blue]",
        "data.channels=[dem,red,green,blue]",
        "data.split=holdout",
        "trainer.max_epochs=1",
    )
    _, (only,) = _runs(tmp_path)
    assert "4ch" in only.info.run_name


@pytest.mark.slow
def test_two_devices_make_one_run(make_chips: ChipMaker, tmp_path: Path) -> None:
    root = make_chips(per_class=8)  # 16 chips in 3 folds: two devices cannot share a fold evenly
    done = _train(root, tmp_path, "trainer.devices=2")
    assert done.returncode == 0, done.stderr
    client, (only,) = _runs(tmp_path)
    predictions = pd.read_parquet(client.download_artifacts(only.info.run_id, "predictions.parquet"))
    assert len(predictions) == 16
    by_fold = ((predictions.probability > 0.5) == predictions.label).groupby(predictions.fold).mean()
    assert by_fold.mean() == pytest.approx(only.data.metrics["accuracy"])
