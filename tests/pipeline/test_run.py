"""The trunk, called twice: what is kept is not computed again, and what is computed again is written again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import rasterio
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from dxc.config.compose import PROJECT_ROOT
from dxc.config.plan import Plan
from dxc.deploy.metadata import read_metadata
from dxc.deploy.predictor import Predictor
from dxc.errors import ConfigError, DataError, ExportError
from dxc.pipeline.kept import kept_folder
from dxc.pipeline.preview import preview
from dxc.pipeline.run import run
from dxc.tracking.record import Record
from tests.conftest import ChipMaker


def _plan(root: Path, *further: str) -> DictConfig:
    overrides = [
        "source=chips", f"source.root={root}", f"cache_dir={root.parent}/cache", "data=5ch", "data.size=20",
        "data.batch_size=8", "data.folds=2", "model.width=4", "trainer.max_epochs=3", "tracking.checkpoints=true",
        "hardware.predictors=[]", "hardware.measure=false", "profile=none", "progress=false",
        "+hardware.limits.macs=1",
    ]  # fmt: skip
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        return Plan.of(compose("train", overrides=[*overrides, *further]))


@pytest.mark.long
def test_kept_folds_and_a_second_attempt(
    make_chips: ChipMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A trial that was killed while its network was costed begins again in the same folder: its folds are not trained
    again, it took as long as they took, and every file is written anew."""
    plan, out = _plan(make_chips(per_class=8)), tmp_path / "artifacts"
    first = run(plan, out, record=Record(tmp_path / "trial", run_id="1"))
    files = sorted(path.relative_to(out) for path in out.rglob("*"))
    assert Path("checkpoints/fold2.pt") in files and Path("costs") in files
    drawn = sorted(path.name for path in files if path.parent == Path("figures"))
    assert drawn == [
        "confusion_matrix.png", "most_wrong.jpg", "precision_recall.png", "precision_recall.svg",
    ]  # fmt: skip
    few, small = first.notes[:2]
    assert few.startswith("16 chips: accuracy ") and small.startswith(
        "small folds: fold1 validates 4 chips with a"
    )
    record = Record.read(tmp_path / "trial")
    assert record is not None
    tags = record.content["tags"]
    keep = kept_folder(tmp_path / "cache", tags["dxc.base"])
    names, identities = zip(*(each.split(":") for each in tags["dxc.stages"].split()), strict=True)
    assert names == ("train", "export", "cost") and identities[0] == tags["dxc.base"]
    assert len(set(identities)) == 3 and all(len(each) == 12 for each in identities)
    kept = {path: torch.load(path, weights_only=True) for path in sorted(keep.glob("*.pt"))}
    assert [path.name for path in kept] == ["fold1.pt", "fold2.pt"]
    seconds = [each["seconds"] for each in kept.values()]
    assert all(each["seconds"] > each["train_seconds"] > 0 for each in kept.values())
    assert {each["device"] for each in kept.values()} == {tags["device"]}
    assert {each["engine"] for each in kept.values()} == {tags["dxc.engine"]} == {"eager"}
    assert first.metrics["fit_seconds"] == pytest.approx(sum(seconds), rel=1e-9)

    # so that loading cannot be taken for training
    long = {"seconds": 100.0, "train_seconds": 50.0, "trained_at": 0.0, "device": "another machine"}
    for path, content in kept.items():
        torch.save(content | long, path)
    with caplog.at_level("INFO"):
        second = run(plan, out, record=Record(tmp_path / "trial", run_id="1"))
    said = "2 of 2 folds are taken from the cache, trained 19"
    assert said in caplog.text and "on another machine in 32-true; again=true trains anew" in caplog.text
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == files
    assert second.metrics["fit_seconds"] == 200.0
    # the other fold's eight chips, three times, in each of two folds
    assert second.metrics["images_per_second"] == pytest.approx(2 * 3 * 8 / 100)
    timed = {"fit_seconds", "images_per_second"}
    assert {k: v for k, v in second.metrics.items() if k not in timed} == {
        k: v for k, v in first.metrics.items() if k not in timed
    }
    record = Record.read(tmp_path / "trial")
    assert record is not None and record.content["tags"]["dxc.within_limits"] == "false"  # macs
    assert record.content["tags"]["device"] == "another machine"  # whose seconds these are

    # one that does not hold what is kept of a fold is trained again, and so is one of other code
    (path, content), (other_path, other) = kept.items()
    del content["seconds"]
    torch.save(content, path)
    torch.save(other | long | {"code": "0" * 16}, other_path)
    caplog.clear()
    third = run(plan, out, record=Record(tmp_path / "trial", run_id="1"))
    assert "fold1 of the cache is trained again: it is damaged (TypeError)" in caplog.text
    assert "fold2 of the cache is trained again: other code of dxc trained it" in caplog.text
    seconds = [torch.load(path, weights_only=True)["seconds"] for path in kept]
    assert third.metrics["fit_seconds"] == pytest.approx(sum(seconds)) and sum(seconds) < 100
    assert third.fold_scores == first.fold_scores


@pytest.mark.long
def test_the_network_of_every_fold_is_exported_where_asked_for(make_chips: ChipMaker, tmp_path: Path) -> None:
    """In float32 and in 8 bits: each file answers as its fold's validation said of the region that it did not see."""
    root = make_chips(regions=("NE", "IL"), per_class=6)
    given, out = ["data.split=region", "fold_files=true"], tmp_path / "out"
    for number, more in enumerate(([], ["compress.quantise=static"])):
        folder = out / str(number)
        result = run(
            _plan(root, *given, *more), folder, record=Record(tmp_path / f"trial{number}", run_id="1")
        )
        assert sorted(path.name for path in (folder / "folds").iterdir()) == ["IL.onnx", "NE.onnx"]
        best = read_metadata(onnx.load(result.onnx), "best")
        assert best.quantised == (None, "static")[number]
        assert (folder / "folds" / f"{best.fold}.onnx").read_bytes() == result.onnx.read_bytes()
        for fold in ("IL", "NE"):
            predictor = Predictor(folder / "folds" / f"{fold}.onnx")
            assert predictor.metadata.model_copy(update={"fold": best.fold}) == best
            assert predictor.metadata.fold == fold
            validated = result.predictions[result.predictions.fold == fold]
            assert set(validated.region) == {fold}
            for chip in validated.itertuples():
                name = f"{'FT'[chip.label]}/{chip.name}.tif"
                with rasterio.open(root / fold / f"{fold}DEM" / name) as raster:
                    bands = {"dem": raster.read(1)}
                with rasterio.open(root / fold / f"{fold}Aer" / name) as raster:
                    bands |= dict(zip(("red", "green", "blue", "nir"), raster.read(), strict=True))
                assert predictor.predict(bands).presence[0] == pytest.approx(chip.probability, abs=1e-5)
    # an attempt without them leaves none
    without = run(_plan(root, "data.split=region"), out / "0", record=Record(tmp_path / "trial0", run_id="1"))
    assert without.onnx.exists() and not (out / "0" / "folds").exists()


def test_a_fold_that_cannot_be_exported_is_left_out(
    make_chips: ChipMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dxc.pipeline import chain

    export = chain._export
    tried: list[str] = []

    def fail(bench: Any, network: Any, path: Path, fold: str) -> Any:
        tried.append(path.parent.name)
        if path.parent.name == "folds":
            raise ExportError("the trained network answers with NaN")
        return export(bench, network, path, fold)

    monkeypatch.setattr(chain, "_export", fail)
    result = run(
        _plan(make_chips(), "fold_files=true", "trainer.max_epochs=1"),
        tmp_path / "out",
        record=Record(tmp_path / "trial", run_id="1"),
    )
    assert tried.count("folds") == 1  # the best one is a copy
    (note,) = [note for note in result.notes if "is not exported" in note]
    assert note.startswith("the network of fold fold") and note.endswith("answers with NaN")
    assert len(list((tmp_path / "out" / "folds").iterdir())) == 1


def test_a_picture_that_fails_loses_no_run(
    make_chips: ChipMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dxc.report import chip_sheet, confusion

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr(confusion, "confusion_matrix", fail)
    monkeypatch.setattr(chip_sheet, "chip_sheet", fail)
    plan = _plan(make_chips(), "data.split=holdout", "trainer.max_epochs=1")
    result = run(plan, tmp_path / "out", record=Record(tmp_path / "trial", run_id="1"))
    assert result.onnx.exists()
    assert [note for note in result.notes if note.startswith("figure ")] == [
        f"figure {name} was not drawn: RuntimeError: no font" for name in ("confusion_matrix", "most_wrong")
    ]
    assert (tmp_path / "out" / "figures" / "precision_recall.png").exists()


def test_preview_shows_chips_that_cannot_be_split(make_chips: ChipMaker, tmp_path: Path) -> None:
    """Two chips make no folds, and are looked at all the same; nothing is trained, cached or tracked."""
    plan = _plan(make_chips(per_class=1), "preview=true")
    path = preview(plan, tmp_path / "out")
    assert path == tmp_path / "out" / "figures" / "chips.jpg"
    assert path.read_bytes()[:3] == b"\xff\xd8\xff"  # JPEG
    assert not (tmp_path / "cache").exists()
    with pytest.raises(DataError, match="there is no folder"):
        preview(_plan(tmp_path / "absent", "preview=true"), tmp_path / "out")
    with pytest.raises(ConfigError, match="preview must be true or false, not 'no way'"):
        preview(_plan(tmp_path, "preview='no way'"), tmp_path / "out")


@pytest.mark.long
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "pickle", "weights"])
def test_a_damaged_fold_is_trained_again(
    damage: str, make_chips: ChipMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import pickle

    plan = _plan(make_chips(), "data.split=holdout", "trainer.max_epochs=1")
    first = run(plan, tmp_path / "out", record=Record(tmp_path / "trial", run_id="1"))
    (path,) = (tmp_path / "cache" / "stages").glob("*/holdout.pt")
    whole = path.read_bytes()
    if damage == "weights":  # of another network
        torch.save(torch.load(path, weights_only=True) | {"weights": {"a": torch.zeros(1)}}, path)
    else:
        # an object that would make a file, which must not be made
        evil = pickle.dumps(_Evil(tmp_path / "made"))
        path.write_bytes(
            {"empty": b"", "cut": whole[: len(whole) // 2], "text": b"no fold\n", "pickle": evil}[damage]
        )
    second = run(plan, tmp_path / "out", record=Record(tmp_path / "trial", run_id="1"))
    assert "holdout of the cache is trained again: it is damaged (" in caplog.text
    assert not (tmp_path / "made").exists()
    assert second.fold_scores == first.fold_scores
    assert torch.load(path, weights_only=True).keys() >= {"weights", "seconds", "trained_at"}  # whole again


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("kept_gb=-1", "kept_gb must be a number of gigabytes from 0, or null for no limit, not -1"),
        ("kept_gb=much", "kept_gb must be a number of gigabytes from 0, or null for no limit, not 'much'"),
        ("again=perhaps", "again must be true or false, not 'perhaps'"),
    ],
)
def test_mistakes(override: str, says: str, make_chips: ChipMaker, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        run(_plan(make_chips(), override), tmp_path / "out", record=Record(tmp_path / "trial"))
