"""search.py on a Slurm cluster with an MLflow server on PostgreSQL: whatever is killed, the study gets its trials."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from omegaconf import OmegaConf

from dxc.config.compose import PROJECT_ROOT
from dxc.pipeline.kept import kept_folder
from dxc.tracking.record import Record
from tests.conftest import ChipMaker
from tests.test_train import SMALL

pytestmark = pytest.mark.slurm

TRIALS = 4
FOLDS = 3
AXES = ("model.kernel=3,5", "model.padding=1,2")
WAIT_S = 120

# Every process of a search imports this: while the file is there, trials wait when they have trained a fold.
HOLD = """
import time
from pathlib import Path

from dxc.training import crossval

train_fold = crossval.train_fold


def held(config, datamodule, fold, number, device, kept, **more):
    while number and Path({path!r}).exists():
        time.sleep(0.1)
    return train_fold(config, datamodule, fold, number, device, kept, **more)


crossval.train_fold = held
"""


@dataclass(frozen=True)
class Bench:
    """One study: where it is kept, how it is searched, and what there is of it."""

    study: str
    chips: Path
    tmp_path: Path
    store: str
    cluster: Mapping[str, str]

    @property
    def folder(self) -> Path:
        return self.tmp_path / "multirun" / self.study

    @property
    def hold(self) -> Path:
        """While this file is there, trials that have trained a fold wait."""
        return self.tmp_path / "hold" / "on"

    @contextlib.contextmanager
    def search(
        self, *overrides: str, axes: Sequence[str] = AXES, env: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A search that is under way, with more variables in its environment; its output is in search.log."""
        command = [
            *(sys.executable, "search.py", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=debug"),
            *("source=chips", f"source.root={self.chips}", "data=5ch", *SMALL),
            *("model.stride=2", "model.pool=none", "model.pool_kernel=2", "model.pool_stride=1", *axes),
            *("search.tuner=random", f"search.max_trials={TRIALS}", "search.objectives=[accuracy,onnx_mb]"),
            *(f"study={self.study}", f"tracking.uri={self.store}", f"cache_dir={self.tmp_path}/cache"),
            f"hydra.sweep.dir={self.folder}",
            "progress=true",  # a job's log has a line for each fold it has trained
            *overrides,
        ]
        hooks = {"PYTHONPATH": str(self.hold.parent)}
        env = {**os.environ, **self.cluster, "OMP_NUM_THREADS": "1", **hooks, **(env or {})}
        with (self.tmp_path / "search.log").open("ab") as log:
            process = subprocess.Popen(command, cwd=PROJECT_ROOT, env=env, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def slurm(self, *command: object) -> str:
        env = os.environ | dict(self.cluster)
        return subprocess.run(
            [*map(str, command)], env=env, capture_output=True, text=True, timeout=30, check=True
        ).stdout.strip()

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, (self.tmp_path / "search.log").read_text()
            time.sleep(0.2)

    def require_success(self, search: subprocess.Popen[bytes], *, trials: int = TRIALS) -> None:
        """Until the search has ended; what it or one before it left in the queue changes nothing any more."""
        self.wait_for(lambda: search.poll() is not None)
        assert search.returncode == 0, (self.tmp_path / "search.log").read_text()
        self.check(trials)
        self.wait_for(lambda: not self.slurm("squeue", "--noheader"))
        self.check(trials)

    def trials(self) -> list[Run]:
        """The child runs of the study's one parent run."""
        client = MlflowClient(self.store)
        experiment = client.get_experiment_by_name(self.study)
        if experiment is None:
            return []
        (parent,) = client.search_runs([experiment.experiment_id], "tags.`dxc.kind` = 'study'") or [None]
        if parent is None:
            return []
        children = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        return client.search_runs([experiment.experiment_id], children)

    def begun(self) -> list[Run]:
        """Trials that have trained a fold and are at the next: they wait there on `hold`."""
        return [
            each
            for each in self.trials()
            if each.data.tags["dxc.state"] == "running"
            and (record := Record.read(self.folder / each.data.tags["dxc.trial"])) is not None
            and (base := record.content["tags"].get("dxc.base")) is not None
            and list(kept_folder(self.tmp_path / "cache", base).glob("fold*.pt"))
        ]

    def job(self, trial: Run) -> str:
        """The Slurm job that worked on a trial last."""
        config = OmegaConf.load(self.folder / trial.data.tags["dxc.trial"] / ".hydra/hydra.yaml")
        return config.hydra.job.id

    def jobs(self) -> set[str]:
        """Every Slurm job that was ever begun for the study."""
        return {path.name.removesuffix("_0_log.out") for path in self.folder.glob(".submitit/*/*_0_log.out")}

    def check(self, count: int) -> None:
        """All that a study of so many finished trials has to have in the end, however it got there."""
        trials = self.trials()
        assert [each.data.tags["dxc.state"] for each in trials] == ["finished"] * count
        assert len({each.data.tags["dxc.trial"] for each in trials}) == count
        client = MlflowClient(self.store)
        for trial in trials:
            assert trial.info.status == "FINISHED"
            assert 0 <= trial.data.metrics["accuracy"] <= 1
            assert "model.onnx" in {file.path for file in client.list_artifacts(trial.info.run_id)}
            assert self.job(trial) in self.jobs()
            record = Record.read(self.folder / trial.data.tags["dxc.trial"])
            assert record and record.content["uploaded"]
        (study,) = client.search_runs([trials[0].info.experiment_id], "tags.`dxc.kind` = 'study'")
        assert study.info.status == "FINISHED"
        assert f"trials:   {count} finished" in (self.tmp_path / "search.log").read_text()
        # no fold was trained twice, neither by two jobs nor by the one that went on with a dead one's trial
        logs = "".join(path.read_text() for path in self.folder.glob(".submitit/*/*_log.err"))
        assert len(re.findall(r"^fold\d \(\d of 3\): ", logs, re.MULTILINE)) == count * FOLDS


@pytest.fixture
def bench(
    make_chips: ChipMaker, tmp_path: Path, store: str, cluster: dict[str, str], request: pytest.FixtureRequest
) -> Bench:
    bench = Bench(request.node.name, make_chips(per_class=6), tmp_path, store, cluster)
    bench.hold.parent.mkdir()
    (bench.hold.parent / "sitecustomize.py").write_text(HOLD.format(path=str(bench.hold)))
    return bench


def test_a_search_on_slurm(bench: Bench) -> None:
    """Started in a job of its own, which asked for memory in a way that excludes how its trials' jobs ask for it."""
    own = {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "500"}
    with bench.search("search.parallel=2", "hydra.launcher.mem_gb=1", env=own) as search:
        bench.require_success(search)
    assert {each.data.tags["dxc.attempts"] for each in bench.trials()} == {"1"}
    assert len(bench.jobs()) == TRIALS


def test_the_front_search_on_slurm(bench: Bench) -> None:
    """Two jobs train a part, a third one of these trials in full."""
    rung = ["search.tuner=pareto", "search.max_trials=2", "search.rungs=[[1,0.1]]", "trainer.max_epochs=20"]
    with bench.search("search.parallel=2", *rung, axes=["model.kernel=3", "model.padding=1,2"]) as search:
        bench.wait_for(lambda: search.poll() is not None)
    trials = bench.trials()
    assert sorted(each.data.tags["dxc.state"] for each in trials) == ["finished", "stopped"]
    assert {each.data.tags["dxc.attempts"] for each in trials} == {"1"}
    assert len(bench.jobs()) == sum(len(json.loads(each.data.tags["dxc.rungs"])) for each in trials) == 3


def test_jobs_that_end_without_a_word_are_done_again(bench: Bench) -> None:
    """One killed as by a kernel out of memory, one cancelled while it runs, one cancelled while it is queued."""
    bench.hold.touch()
    with bench.search("search.parallel=4", "search.retries=1") as search:
        bench.wait_for(lambda: len(bench.begun()) == 2)
        killed, cancelled = bench.begun()
        queued = bench.slurm("squeue", "--noheader", "--states=PENDING", "--format=%i").split()
        os.kill(int(killed.data.tags["dxc.host"].split(":")[1]), signal.SIGKILL)
        jobs = [bench.job(killed), bench.job(cancelled), queued[0]]
        bench.slurm("scancel", *jobs[1:])
        bench.hold.unlink()
        bench.require_success(search)
    attempts = {each.info.run_id: each.data.tags["dxc.attempts"] for each in bench.trials()}
    assert attempts[killed.info.run_id] == attempts[cancelled.info.run_id] == "2"
    assert sorted(attempts.values()) == ["1", "2", "2", "2"]
    assert not {bench.job(each) for each in bench.trials()} & set(jobs)


def test_jobs_that_slurm_stops(bench: Bench) -> None:
    """One is put back into the queue and goes on from there, one is told of its time limit and is done again."""
    bench.hold.touch()
    options = ["search.parallel=2", "search.max_trials=2", "search.retries=1", "hydra.launcher.timeout_min=5"]
    with bench.search(*options) as search:
        bench.wait_for(lambda: len(bench.begun()) == 2)
        requeued, limited = bench.begun()
        jobs = {trial.info.run_id: bench.job(trial) for trial in (requeued, limited)}
        bench.slurm("scontrol", "requeue", jobs[requeued.info.run_id])
        bench.slurm("scancel", "--signal=USR2", jobs[limited.info.run_id])  # as Slurm does some time before
        bench.hold.unlink()
        bench.require_success(search, trials=2)
    attempts = {each.info.run_id: each.data.tags["dxc.attempts"] for each in bench.trials()}
    assert attempts == {requeued.info.run_id: "1", limited.info.run_id: "2"}
    again = {each.info.run_id for each in bench.trials() if bench.job(each) != jobs[each.info.run_id]}
    assert again == {limited.info.run_id}


def test_a_killed_search_goes_on(bench: Bench) -> None:
    """Two of its jobs run, two are queued; all four stay in Slurm, beside those of the search that goes on."""

    def states() -> list[str]:
        return sorted(bench.slurm("squeue", "--noheader", "--format=%T").split())

    bench.hold.touch()
    with bench.search("search.parallel=4") as search:
        bench.wait_for(lambda: len(bench.begun()) == 2)
        search.kill()
    assert states() == ["PENDING"] * 2 + ["RUNNING"] * 2
    with bench.search("search.parallel=4") as search:
        bench.wait_for(lambda: states() == ["PENDING"] * 4 + ["RUNNING"] * 2)
        bench.hold.unlink()
        bench.require_success(search)
    assert {each.data.tags["dxc.attempts"] for each in bench.trials()} == {"1"}
