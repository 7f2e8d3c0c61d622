"""The trunk, called twice: what is kept is not computed again, and what is computed again is written again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from dxc.config.compose import PROJECT_ROOT
from dxc.pipeline.run import run
from dxc.tracking.record import Record
from tests.conftest import ChipMaker


def _composed(root: Path) -> DictConfig:
    overrides = [
        "source=chips", f"source.root={root}", f"cache_dir={root.parent}/cache", "data=5ch", "data.size=20",
        "data.batch_size=8", "data.folds=2", "model.width=4", "trainer.max_epochs=3", "tracking.checkpoints=true",
        "hardware.predictors=[]", "hardware.measure=false", "profile=none", "progress=false",
        "+hardware.limits.macs=1",
    ]  # fmt: skip
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        return compose("train", overrides=overrides)


def test_kept_folds_and_a_second_attempt(make_chips: ChipMaker, tmp_path: Path) -> None:
    """A trial that was killed while its network was costed begins again in the same folder: its folds are not trained
    again, it took as long as they took, and every file is written anew."""
    cfg, keep, out = _composed(make_chips(per_class=8)), tmp_path / "folds", tmp_path / "artifacts"
    first = run(cfg, out, record=Record(tmp_path / "trial", run_id="1"), keep=keep)
    files = sorted(path.relative_to(out) for path in out.rglob("*"))
    assert Path("checkpoints/fold2.pt") in files and Path("costs") in files
    kept = {path: torch.load(path, weights_only=True) for path in sorted(keep.iterdir())}
    assert len(kept) == 2
    seconds = [each["seconds"] for each in kept.values()]
    assert all(each["seconds"] > each["train_seconds"] > 0 for each in kept.values())
    assert first.metrics["fit_seconds"] == pytest.approx(sum(seconds), rel=1e-9)

    # so that loading cannot be taken for training
    for path, content in kept.items():
        torch.save(content | {"seconds": 100.0, "train_seconds": 50.0}, path)
    second = run(cfg, out, record=Record(tmp_path / "trial", run_id="1"), keep=keep)
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

    # one that does not hold what is kept of a fold is trained again
    path, content = next(iter(kept.items()))
    del content["seconds"]
    torch.save(content, path)
    third = run(cfg, out, record=Record(tmp_path / "trial", run_id="1"), keep=keep)
    assert third.metrics["fit_seconds"] == pytest.approx(100 + torch.load(path, weights_only=True)["seconds"])
    assert third.fold_scores == first.fold_scores
