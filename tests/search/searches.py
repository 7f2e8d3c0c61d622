"""Searches in this process: what the Hydra plugin does, with Hydra's compose API and a launcher of a few lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from dxc.config.compose import PROJECT_ROOT
from dxc.search.study import Runner, search
from dxc.search.trial import run_trial
from dxc.tracking.patience import StoredRun
from dxc.tracking.store import Store

CONF = PROJECT_ROOT / "conf"
SPACE = OmegaConf.to_container(OmegaConf.load(CONF / "space" / "resnet18.yaml"))

# two folds of one epoch on a handful of chips of 20 x 20 pixels; eight points, five trials
SMALL = [
    "data=5ch",
    "data.size=20",
    "data.batch_size=8",
    "data.folds=2",
    "trainer.max_epochs=1",
    "model.kernel=3",
    "model.stride=1,2",
    "model.padding=1",
    "model.width=4",
    "model.pool_stride=2",
    "hardware.predictors=[]",
    "profile=none",  # auto, a second each, in the tests of it
    "hardware.measure=false",  # some seconds each, in the test of a trial beside train.py
    "search.objectives=[accuracy,onnx_mb]",
    "search.tuner=random",
    "search.store_patience_s=2",
]
Launch = Callable[[Sequence[Sequence[str]], Callable[[], bool]], None]


def common_overrides(root: Path, tmp_path: Path) -> list[str]:
    """Study `first` on the chips in `root`, everything it writes in a temporary folder."""
    return [
        "source=chips",
        f"source.root={root}",
        f"cache_dir={tmp_path}/cache",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        "study=first",
        f"search.reports={tmp_path}/reports",
        *SMALL,
    ]


def replaced(common: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Both, without those of the first whose key is in the second."""
    keys = {each.split("=")[0] for each in overrides}
    return [each for each in common if each.split("=")[0] not in keys] + list(overrides)


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration of search.py with these overrides, without the section hydra."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("search", overrides=[*overrides, "~hydra/sweeper"])
    with open_dict(cfg):
        cfg.pop("hydra", None)
    return cfg


def is_group(key: str) -> bool:
    return (CONF / key).is_dir()


class Searching:
    """One study on tiny chips in a temporary folder; call it with further overrides."""

    def __init__(self, root: Path, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.uri = f"sqlite:///{tmp_path}/mlflow.db"
        self.folder = tmp_path / "multirun" / "first"
        self.common = common_overrides(root, tmp_path)
        self.space = SPACE
        self.launched: list[str] = []
        """Trials in the order they were launched, over all calls."""

    def __call__(self, *overrides: str, launch: Launch | None = None, parallel: int = 1) -> list[StoredRun]:
        """Run the search; returns the trials as they stand in the store."""
        arguments = replaced(self.common, overrides)
        search(
            self.space, arguments, Runner(composed, is_group, launch or self.launch, parallel, self.folder)
        )
        return self.trials()

    def launch(self, jobs: Sequence[Sequence[str]], watch: Callable[[], bool]) -> None:
        for overrides in jobs:
            self.run(overrides)

    def run(self, overrides: Sequence[str]) -> None:
        """One trial, as search.py's main runs it."""
        cfg = composed(overrides)
        trial = cfg.search.job.trial
        self.launched.append(trial)
        (self.folder / trial).mkdir(parents=True, exist_ok=True)
        run_trial(cfg, self.folder / trial)

    def trials(self) -> list[StoredRun]:
        return Store(self.uri, "first", patience_s=0).runs(dxc__kind="trial")

    def states(self) -> dict[str, str]:
        return {run.tags["dxc.trial"]: run.tags["dxc.state"] for run in self.trials()}
