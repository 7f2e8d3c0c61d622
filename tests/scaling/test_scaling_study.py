"""The grid of a study: what is kept, what is absent, what fails; bad input. No rank is started here."""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from PIL import Image

import dxc.config.compose  # noqa: F401  registers the resolvers that conf/ uses
from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.errors import ConfigError, DataError, ScalingError
from dxc.scaling import study
from dxc.scaling.launch import by_hand
from dxc.scaling.settings import Settings
from dxc.scaling.sources import described, images_of
from dxc.scaling.study import Machine, Scaled, plan, scale
from dxc.scaling.worker import RESULT

Asked = Callable[..., Settings]
RATE = {1: 100.0, 2: 180.0, 4: 300.0}
CORES = Machine("cpu", "a processor, 2 cores", 2)


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """Makes settings as scale.py does."""

    def make(*overrides: str) -> Settings:
        own = [
            f"cache_dir={tmp_path}/cache", f"out={tmp_path}/reports", f"tracking.uri=sqlite:///{tmp_path}/runs.db",
            "accelerator=cpu", "model=resnet8", "source.classes=4", "tracking.log=false",
        ]  # fmt: skip
        with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
            return Settings.of(resolved(compose("scale", [*own, *overrides])))

    return make


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of devices of the runs that were begun. A run takes no time and gives RATE; four devices fail."""
    begun: list[int] = []

    def launch(folder: Path) -> None:
        request = json.loads((folder / "request.json").read_text())
        total = request["nodes"] * request["devices"]
        begun.append(total)
        if total == 4:
            raise ScalingError("rank 3 was ended by SIGKILL")
        step_s = total * request["device_batch"] / RATE[total]
        result = {
            "images_per_second": RATE[total], "wall_seconds": 30.0, "wall_spread_s": 0.0, "steps": 300,
            "step_s": step_s, "loader_s": 0.0, "synced_s": step_s, "synced_error_s": 1e-4,
            "least_step_s": step_s / 4, "compute_s": 8 / RATE[1], "compute_error_s": 1e-4, "gradient_bytes": 1000,
            "reduced": [(4, 0.002, 1e-5), (1000, 0.004, 1e-5)] if total > 1 else [], "accuracy": 0.5 + 0.1 * total,
            "seconds_to_accuracy": None, "device_name": CORES.name, "total_s": 40.0, "params": 250, "hosts": ["a"],
        }  # fmt: skip
        (folder / RESULT).write_text(json.dumps(result))

    monkeypatch.setattr(study, "launch_here", launch)
    monkeypatch.setattr(study, "_machine", lambda settings: CORES)
    return begun


def _states(scaled: Scaled) -> dict[int, str]:
    return dict(zip(scaled.frame["devices"], scaled.frame["state"], strict=True))


@pytest.mark.long
def test_a_study_is_run_once_and_what_is_not_here_is_predicted(asked: Asked, launched: list[int]) -> None:
    settings = asked("devices='1,2,8'", "price_per_gpu_hour=3")
    scaled = scale(settings)
    assert launched == [1, 2]
    assert _states(scaled) == {1: "measured", 2: "measured", 8: "predicted"}
    rows = scaled.frame.set_index("devices")
    assert rows.loc[2, "speedup"] == pytest.approx(1.8)
    assert rows.loc[2, "added_speedup"] == pytest.approx(0.8)
    # 16 images / 180 a second less 80 ms; an eighth of a minute at 3
    assert rows.loc[2, "communication_share"] == pytest.approx(0.1)
    assert rows.loc[2, "roofline_share"] == pytest.approx(0.25)
    assert math.isnan(rows.loc[8, "roofline_share"])
    assert rows.loc[2, "price"] == pytest.approx(2 * 30 / 3600 * 3)
    assert rows.loc[2, "price_per_point"] == pytest.approx(0.05 / 70)
    assert 1.8 < rows.loc[8, "speedup_low"] <= rows.loc[8, "speedup"] <= rows.loc[8, "speedup_high"] < 8
    assert rows.loc[8, "remark"] == "8 devices needed, 2 here"
    again = scale(settings)
    assert launched == [1, 2]
    assert again.frame["images_per_second"].tolist() == scaled.frame["images_per_second"].tolist()
    names = {path.name for path in scaled.folder.iterdir()}
    assert names == {f"scaling.{end}" for end in ("md", "tex", "csv", "png", "svg")} | {"index.html"}
    table = (scaled.folder / "scaling.md").read_text()
    assert "predicted" in table and "1.80" in table and "share of the roofline" in table
    assert "8 devices needed, 2 here" in (scaled.folder / "index.html").read_text()


def test_a_killed_study_goes_on(asked: Asked, launched: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = asked("devices='1,2'")
    whole = study.launch_here

    def killed(folder: Path) -> None:
        if launched:
            raise KeyboardInterrupt
        whole(folder)

    monkeypatch.setattr(study, "launch_here", killed)
    with pytest.raises(KeyboardInterrupt):
        scale(settings)
    monkeypatch.setattr(study, "launch_here", whole)
    assert _states(scale(settings)) == {1: "measured", 2: "measured"}
    assert launched == [1, 2]


def test_a_run_that_fails_does_not_stop_the_study(asked: Asked, launched: list[int]) -> None:
    settings = asked("devices='1,2,4'", "oversubscribe=true")
    scaled = scale(settings)
    assert launched == [1, 2, 4]
    assert _states(scaled) == {1: "measured", 2: "measured", 4: "failed"}
    assert ("failed", "4 devices, weak, batch 8: rank 3 was ended by SIGKILL") in scaled.lines
    scale(settings)
    assert launched == [1, 2, 4, 4]  # what failed is tried again


def test_each_device_needs_a_shard(asked: Asked, launched: list[int], tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for member, content in (("0.ppm", b"P6 1 1 255 abc"), ("0.cls", b"1")):
                about = tarfile.TarInfo(member)
                about.size = len(content)
                archive.addfile(about, io.BytesIO(content))
    shards = [f"source.shards={tmp_path}/a.tar", f"source.val_shards={tmp_path}/b.tar"]
    scaled = scale(asked("source=webdataset", *shards, "devices='1,2'"))
    assert launched == [1]
    (two,) = [trial for trial in scaled.trials if trial.point.devices == 2]
    assert two.reason == (
        "2 devices need a shard each to train, and there are 1; write the images to more shards"
    )


@pytest.mark.long
def test_runs_in_mlflow(asked: Asked, launched: list[int], tmp_path: Path) -> None:
    settings = asked("devices='1,2'", "tracking.log=true")
    scale(settings)
    scale(settings)
    client = MlflowClient(f"sqlite:///{tmp_path}/runs.db")
    experiment = client.get_experiment_by_name("scale")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags["dxc.kind"] == "study"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.data.params["devices"] for run in children) == ["1", "2"]
    two = next(run for run in children if run.data.params["devices"] == "2")
    assert two.data.metrics["images_per_second"] == 180
    assert two.data.metrics["speedup"] == pytest.approx(1.8)
    assert two.data.metrics["roofline_share"] == pytest.approx(0.25)
    assert two.data.metrics["scaling_efficiency"] == pytest.approx(0.9)
    assert "index.html" in {file.path for file in client.list_artifacts(parent.info.run_id)}


def test_a_target_that_is_not_reached_is_said(asked: Asked, launched: list[int]) -> None:
    scaled = scale(asked("devices=1", "until='accuracy=0.9'"))
    text = next(text for label, text in scaled.lines if label == "not reached")
    assert (
        text == "1 device, weak, batch 8: accuracy 0.9 was not reached within 30 s; it was 0.6000 at the end"
    )


def test_several_nodes_without_slurm_say_what_to_type(asked: Asked, launched: list[int]) -> None:
    settings = asked("devices=1", "nodes='1,2'")
    scaled = scale(settings)
    assert launched == [1]
    (far,) = [trial for trial in scaled.trials if trial.point.nodes == 2]
    command = by_hand(far.request, far.folder)
    assert "torchrun --nnodes=2 --nproc-per-node=1" in command and command in far.reason
    assert (far.folder / "request.json").exists()


def test_without_numbers_of_devices_two_steps_more_than_there_are_are_predicted(asked: Asked) -> None:
    assert [trial.point.devices for trial in plan(asked(), CORES)] == [1, 2, 4, 8]
    six = plan(asked(), Machine("cpu", "six", 6))
    assert [trial.point.devices for trial in six] == [1, 2, 4, 6, 8, 16]
    assert [trial.point.devices for trial in plan(asked(), Machine("cpu", "one", 1))] == [1]


def test_strong_scaling_divides_the_batch(asked: Asked, launched: list[int]) -> None:
    trials = plan(asked("devices='1,2'", "scaling='weak,strong'", "batch=16"), CORES)
    assert [(t.point.scaling, t.request.devices, t.request.device_batch) for t in trials] == [
        ("weak", 1, 16), ("weak", 2, 16), ("strong", 1, 16), ("strong", 2, 8),
    ]  # fmt: skip
    # linear in the images of a step: 0.1 x 16 / 256
    assert [t.request.learning_rate for t in trials] == pytest.approx([0.00625, 0.0125, 0.00625, 0.00625])


def test_the_model_is_the_published_resnet50(asked: Asked) -> None:
    import torch

    from dxc.config.build import build

    (trial,) = plan(asked("model=resnet50", "source.classes=1000", "devices=1"), CORES)
    with torch.device("meta"):
        network = build(trial.request.model, "model")
    assert sum(each.numel() for each in network.parameters()) == 25_557_032


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["devices=0"], "devices must be different whole numbers of at least 1, such as 1,2,4, not 0"),
        (["devices='1,x'"], "devices must be different whole numbers"),
        (["devices='3'", "scaling=strong", "batch=8"], "it cannot divide batch=8 by 3 devices"),
        (["scaling=both"], "scaling must be weak, strong or weak,strong, not 'both'"),
        (["until='loss=1'"], "until must be accuracy=SHARE"),
        (["until='accuracy=75'"], "until must be accuracy=SHARE"),
        (["model=sppnet"], "sppnet is none"),
        (["+device=2"], "the configuration has no device"),
        (["minutes=-1"], "minutes must be a number over 0, or null, not -1"),
    ],
)
def test_bad_input(asked: Asked, overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan(asked(*overrides), CORES)


def _folder(root: Path, **images: int) -> Path:
    for name, count in images.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (20, 16), (number, 0, 0)).save(root / name / f"{number}.png")
    return root


SOURCE = {"kind": "imagefolder", "workers": 0, "on_bad_file": "raise", "checked_files": 100}
DATA = {"channels": ["red", "green", "blue"]}


def _look(root: Path, tmp_path: Path, **more: Any) -> dict[str, Any]:
    return described({**SOURCE, "root": str(root), **more}, DATA, size=16, folder=tmp_path / "lists")


def test_an_image_folder(tmp_path: Path) -> None:
    import torch

    from dxc.scaling.images import Rank

    root = _folder(tmp_path / "images", cat=12, dog=8)
    about = _look(root, tmp_path)
    assert (about["classes"], about["images"]) == (2, 17)  # of 12 cats two are held out, of 8 dogs one
    ranks = [images_of(about, Rank(number, 2, torch.device("cpu"), 0)) for number in (0, 1)]
    images, labels = next(ranks[0].train(4))
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.float32
    assert set(labels.tolist()) <= {0, 1}
    held_out = [label for rank in ranks for _, labels in rank.validation(8) for label in labels.tolist()]
    assert sorted(held_out) == [0, 0, 1]


def test_bad_image_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds one class, cat; to tell classes apart"):
        _look(_folder(tmp_path / "one", cat=3), tmp_path)
    (tmp_path / "none" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no folders"):
        _look(_folder(tmp_path / "none" / "train"), tmp_path)
    root = _folder(tmp_path / "bad", cat=3, dog=3)
    (root / "cat" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 file cannot be used:\n  .*broken\.jpg: Unidentified"):
        _look(root, tmp_path)
    assert _look(root, tmp_path, on_bad_file="skip")["images"] == 4
    with pytest.raises(DataError, match="is no folder"):
        _look(tmp_path / "nowhere", tmp_path)
