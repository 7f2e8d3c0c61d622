"""search.py as a user runs it: real processes, stopped and killed, read back from MLflow."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dxc.config.compose import PROJECT_ROOT
from dxc.tracking.patience import StoredRun
from dxc.tracking.record import Record
from dxc.tracking.store import Store
from tests.conftest import ChipMaker
from tests.report.terminals import Terminal
from tests.search.searches import common_overrides, replaced
from tests.test_processes import runs

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


class Command:
    """`python search.py` on tiny chips, in a study of a temporary folder."""

    def __init__(self, root: Path, tmp_path: Path) -> None:
        self.uri = f"sqlite:///{tmp_path}/mlflow.db"
        self.folder = tmp_path / "multirun" / "first"
        self.common = [
            *common_overrides(root, tmp_path),
            f"hydra.sweep.dir={tmp_path}/multirun/${{study}}",
        ]

    def line(self, *overrides: str) -> list[str]:
        return [sys.executable, "search.py", *replaced(self.common, overrides)]

    def run(self, *overrides: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.line(*overrides),
            cwd=PROJECT_ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def start(self, *overrides: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.line(*overrides),
            cwd=PROJECT_ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def trials(self) -> list[StoredRun]:
        return Store(self.uri, "first", patience_s=5).runs(dxc__kind="trial")

    def begun(self) -> dict[str, int]:
        """How often training was begun, by trial."""
        records = [Record.read(path.parent) for path in self.folder.glob("*/record.json")]
        return {each.content["trial"]: each.content.get("begun", 0) for each in records if each is not None}


@pytest.fixture
def command(make_chips: ChipMaker, tmp_path: Path, store_file: Path) -> Command:
    return Command(make_chips(regions=("NE",), per_class=8), tmp_path)


def _until(process: subprocess.Popen, text: str) -> str:
    """What the process prints up to a line with this text."""
    seen = ""
    assert process.stdout is not None
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"ended without {text!r}:\n{seen}")


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "total"), [(2, 6), pytest.param(10, 16, marks=pytest.mark.slow)])
def test_killed_again_and_again(command: Command, kills: int, total: int) -> None:
    """kill -9 at random moments: nothing that was finished is lost, changed or trained again, and the study ends with
    the number of trials that was asked for."""
    overrides = ["model.padding=1,2,3", f"search.max_trials={total}", "trainer.max_epochs=2"]
    rng = random.Random(1)
    finished: dict[str, tuple[float, int]] = {}
    for _ in range(kills):
        process = command.start(*overrides)
        _until(process, "study 'first'")
        time.sleep(rng.uniform(0.0, 1.6))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = {
            run.tags["dxc.trial"]: (run.metrics["accuracy"], command.begun()[run.tags["dxc.trial"]])
            for run in command.trials()
            if run.tags["dxc.state"] == "finished"
        }
        assert finished.items() <= now.items()
        finished = now
    assert len(finished) < total, "the kills came too late to show anything"

    done = command.run(*overrides)
    assert done.returncode == 0, done.stderr
    runs = command.trials()
    assert len(runs) == len({run.tags["dxc.trial"] for run in runs}) == total
    assert {run.tags["dxc.state"] for run in runs} == {"finished"}
    assert {run.status for run in runs} == {"FINISHED"}
    after = {
        run.tags["dxc.trial"]: (run.metrics["accuracy"], command.begun()[run.tags["dxc.trial"]])
        for run in runs
    }
    assert finished.items() <= after.items()
    # a kill costs one beginning at most
    assert sum(begun for _, begun in after.values()) <= total + kills
    for run in runs:
        (rung,) = json.loads(run.tags["dxc.rungs"])
        assert rung["folds"] == 2 and run.metrics["accuracy"] == pytest.approx(sum(rung["accuracies"]) / 2)


@pytest.mark.slow
def test_in_a_terminal(command: Command, tmp_path: Path) -> None:
    """Fold and epoch of what is trained, from the trial's process; Ctrl-C; the page while it runs and afterwards."""
    page = tmp_path / "reports" / "first" / "index.html"
    long = ["search.max_trials=1", "trainer.max_epochs=2000", "model.stride=2"]
    terminal = Terminal(
        command.line(*long, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), cwd=PROJECT_ROOT
    )
    try:
        terminal.until("training fold 1 of 2, epoch ")
        assert "0 of 1 trial done" in terminal.screen.lines[-1]
        assert 'http-equiv="refresh"' in page.read_text() and "None yet." in page.read_text()
        terminal.type(b"\x03")
        assert terminal.end() == 130
        assert terminal.screen.cursor and "stopped by SIGINT" in terminal.screen.lines[-2]
    finally:
        terminal.close()
    assert "refresh" not in page.read_text() and "the same command goes on" in page.read_text()

    short = ["search.max_trials=2", "study=second"]
    page = tmp_path / "reports" / "second" / "index.html"
    done = command.run(*short)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and "best so far" not in done.stdout
    assert "refresh" not in page.read_text() and page.read_text().count('<td class="name">') == 2
    page.write_text("the full report")
    assert command.run(*short).returncode == 0
    assert page.read_text() == "the full report"  # nothing was trained


@pytest.mark.slow
def test_killed_while_a_network_is_costed(command: Command) -> None:
    """Everything up to there lies in the trial's folder, weights of the folds too: the same command goes over it."""
    overrides = ["search.max_trials=1", "tracking.checkpoints=true", "hardware.measure=true", "profile=torch"]
    process = command.start(*overrides)
    try:
        deadline = time.monotonic() + 120
        while not (costs := list(command.folder.glob("*/artifacts/costs"))) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    (artifacts,) = [path.parent for path in costs]
    assert sorted(path.name for path in (artifacts / "checkpoints").iterdir()) == ["fold1.pt", "fold2.pt"]
    (trial,) = command.trials()
    assert trial.tags["dxc.state"] == "running"
    done = command.run(*overrides)
    assert done.returncode == 0 and "1 finished" in done.stdout, done.stdout + done.stderr
    (trial,) = command.trials()
    assert trial.tags["dxc.state"] == "finished" and trial.tags.get("dxc.attempts") == "1"
    assert trial.metrics["measured_latency_ms"] > 0
    folds = [trial.metrics[f"val_accuracy.fold{fold}"] for fold in (1, 2)]
    assert trial.metrics["accuracy"] == pytest.approx(sum(folds) / 2)


@pytest.mark.slow
def test_two_processes_at_once(command: Command, store_file: Path) -> None:
    """Two searches of one study, started together without a store: six trials in all, each trained once."""
    store_file.unlink()
    overrides = ["model.padding=1,2,3", "search.max_trials=6", "trainer.max_epochs=2"]
    first, second = command.start(*overrides), command.start(*overrides)
    outputs = [process.communicate(timeout=200)[0] for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], outputs
    runs = command.trials()
    assert len(runs) == len({run.tags["dxc.trial"] for run in runs}) == 6
    assert {run.tags["dxc.state"] for run in runs} == {"finished"}
    assert sorted(command.begun().values()) == [1] * 6
    assert all("6 finished" in output for output in outputs)


@pytest.mark.slow
def test_ctrl_c_and_going_on(command: Command) -> None:
    process = command.start("model.padding=1,2,3", "search.max_trials=4")
    seen = _until(process, "1 of 4 trials done")
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in seen + rest
    assert "stopped before its end: the same command goes on from here" in rest
    assert "stopped by SIGINT" in rest and "front of study 'first'" in rest
    assert "running" not in {run.tags["dxc.state"] for run in command.trials()}
    done = command.run("model.padding=1,2,3", "search.max_trials=4")
    assert done.returncode == 0 and "going on: " in done.stdout
    assert len([run for run in command.trials() if run.tags["dxc.state"] == "finished"]) == 4


@pytest.mark.slow
def test_joblib(command: Command) -> None:
    """Two trials at once in processes of their own; a worker that is killed is noticed, and its trial tried again."""
    overrides = [
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "search.max_trials=4",
        "trainer.max_epochs=15",
    ]
    process = command.start(*overrides)
    try:
        _until(process, "study 'first'")
        deadline = time.monotonic() + 60
        victim = None
        while victim is None and time.monotonic() < deadline:
            running = [run for run in command.trials() if run.tags["dxc.state"] == "running"]
            training = [run for run in running if command.begun().get(run.tags["dxc.trial"])]
            victim = next((run for run in training if "dxc.host" in run.tags), None)
            time.sleep(0.05)
        assert victim is not None
        pid = int(victim.tags["dxc.host"].rsplit(":", 1)[1])
        assert pid != process.pid
        os.kill(pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    runs = command.trials()
    assert len(runs) == 4 and {run.tags["dxc.state"] for run in runs} == {"finished"}
    assert len({run.tags["dxc.host"] for run in runs}) >= 2
    assert command.begun()[victim.tags["dxc.trial"]] == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_workers_end_with_their_search(command: Command, how: signal.Signals) -> None:
    """Two that train and one that waits for work."""
    process = command.start(
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=3", "search.max_trials=2", "trainer.max_epochs=20000"
    )
    try:
        _until(process, "study 'first'")
        deadline = time.monotonic() + 90
        while sum(command.begun().values()) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        family = psutil.Process(process.pid).children(recursive=True)
        assert sum(each.cpu_times().user > 1 for each in family) >= 2
        process.send_signal(how)
        process.wait(20)
        soon = time.monotonic() + 5
        while (left := [each for each in family if runs(each)]) and time.monotonic() < soon:
            time.sleep(0.1)
        assert left == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_full_disk(command: Command, tmp_path: Path) -> None:
    """The search stops with what to do; with room again, it goes on and nothing is recorded as failed."""
    small = tmp_path / "multirun"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        done = command.run("search.max_trials=3", "model.width=16")
        assert done.returncode == 2, done.stdout + done.stderr
        assert "no space left on the disk" in done.stderr and "same command" in done.stderr
        assert "Traceback" not in done.stderr
        assert "failed" not in {run.tags["dxc.state"] for run in command.trials()}
        subprocess.run(["mount", "-o", "remount,size=60m", str(small)], check=True)
        done = command.run("search.max_trials=3", "model.width=16")
        assert done.returncode == 0, done.stdout + done.stderr
        assert [run.tags["dxc.state"] for run in command.trials()] == ["finished"] * 3
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.kernel=3", "model.kernel=3,5"], "pinned and swept at once"),
        (["modle.kernel=3", "model.kernel=3,5"], "Could not override 'modle.kernel'"),
    ],
)
def test_mistakes_get_one_message(command: Command, overrides: list[str], message: str) -> None:
    line = [
        each for each in command.line() if each.split("=")[0] not in ("model.kernel", "study")
    ] + overrides
    done = subprocess.run(line, cwd=PROJECT_ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2)  # 1: Hydra's own
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not command.folder.parent.exists()


def test_help_is_quick_and_says_how() -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "search.py", "--help"], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and time.monotonic() - started < 10
    for line in (
        "search.py search.tuner=tpe study=first",
        "hydra/launcher=joblib",
        "space: mobilenet_v1, resnet18",
    ):
        assert line in done.stdout
