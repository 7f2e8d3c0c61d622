"""Times a search per trial beyond the training, compared with an NNI experiment and a plain Hydra multirun.

    python benchmarks/search_overhead.py            about 5 minutes on 4 cores

The trials train nothing. The contenders take turns, each time in a fresh process:
    dxc      search.py over the shipped space (7 channels), once with tuner=random and once with tuner=pareto, in one
             process (Hydra's basic launcher). The time includes composition, checks, the MLflow store (SQLite), records
             on disk, the upload of a small file and the tuner. Only the training and the export are replaced.
    NNI      an NNI experiment: random tuner, local training service, one trial at a time. A trial is a process that
             imports nni, takes its parameters and reports a number; no file is kept.
    Hydra    train.py's configuration with -m and a main that returns at once: no tuner, nothing is tracked.
Seconds per trial count from the beginning of one trial to that of the next, without the first few. All other time of
the process is "start and stop". With tuner=pareto a trial is trained in parts. Then the figure is seconds per training,
without the first ten, which are drawn at random. Files and store lie in outputs/ on the disk of the checkout, because a
database in memory would cost almost nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import runpy
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from _record import ROOT, save, spread


@dataclass(frozen=True)
class Contender:
    """trials: their number. warm_up: how many of them come before the clock starts."""

    name: str
    trials: int
    warm_up: int
    unit: str = "trial"


CONTENDERS = {
    "dxc": Contender("dxc, tuner=random", trials=48, warm_up=8),
    "dxc_pareto": Contender("dxc, tuner=pareto", trials=8, warm_up=12, unit="training"),  # about 20 trainings
    "nni": Contender("NNI experiment", trials=8, warm_up=1),
    "hydra": Contender("Hydra multirun", trials=48, warm_up=8),
}
# 48 points; as many overrides for each as a trial of dxc has
HYDRA_AXES = [
    "data=7ch",
    "model.kernel=3,5",
    "model.stride=1,2",
    "model.padding=1,2,3",
    "model.pool=none,max",
    "model.pool_kernel=2",
    "model.pool_stride=2",
    "model.width=32,64",
]
NNI_AXES = {"kernel": [3, 5], "stride": [1, 2], "padding": [1, 2, 3], "width": [32, 48, 64]}
NNI_TRIAL = "import nni\nnni.get_next_parameter()\nnni.report_final_result(0.5)\n"
NNI_PATIENCE_S = 15  # for each trial
# NNI's web portal listens on every interface and has no setting for it. This code makes Node listen only locally
LOCAL_ONLY = """
const { Server } = require("net");
const listen = Server.prototype.listen;
Server.prototype.listen = function (port, ...rest) {
    return typeof port === "number" ? listen.call(this, port, "127.0.0.1", ...rest) : listen.call(this, port, ...rest);
};
"""


# --- one run, in a process of its own and an empty folder: when did its trials begin? --------------------------------


def run_dxc(tuner: str, trials: int, shared: Path) -> list[float]:
    """Run the real search.py. `shared` holds chips, costs of networks and the store, which several searches share."""
    import dxc.pipeline.run
    import dxc.pipeline.rung
    from dxc.config.names import flatten
    from dxc.config.plan import Plan

    began: list[float] = []

    def opened(plan: Plan, record: Any) -> Any:
        began.append(time.time())
        heading = {"study": plan.study, "name": plan.name, "params": flatten(plan.values())}
        return record.opened(plan.tracking.uri, **heading, tags={"model": "resnet18"})

    def accuracies(plan: Plan, folds: int) -> list[float]:
        """Something to learn: wider is better, and folds differ."""
        rng = random.Random(str(plan.model.values()))
        return [0.7 + plan.model.argument("width") / 500 + rng.gauss(0, 0.02) for _ in range(folds)]

    def run(cfg: Any, out: Path, *, record: Any, **_: Any) -> Any:
        """Replaces dxc.pipeline.run.run: it records as much, but for folds that are not trained."""
        with opened(cfg, record) as tracked:
            folds = {f"fold{n}": value for n, value in enumerate(accuracies(cfg, cfg.data.folds))}
            epochs = range(1, cfg.trainer.max_epochs + 1)
            curves = [(f"val_accuracy.{fold}", value, n) for fold, value in folds.items() for n in epochs]
            tracked.log({"accuracy": statistics.mean(folds.values())}, curves)
            (out / "note.txt").write_text("nothing was trained\n")
            tracked.log_files(out)
        return SimpleNamespace(fold_scores=folds, notes=())

    def train_part(cfg: Any, record: Any, *, folds: int, epochs: int, **_: Any) -> list[float]:
        with opened(cfg, record) as tracked:
            found = accuracies(cfg, folds)
            tracked.log({"fold_score": statistics.mean(found)})
        return found

    dxc.pipeline.run.run, dxc.pipeline.rung.train_part = run, train_part
    sys.argv = [
        "search.py",
        f"study={Path.cwd().name}",
        "data=7ch",
        f"search.tuner={tuner}",
        f"search.max_trials={trials}",
        "source.chips=16",
        f"cache_dir={shared}",
        f"tracking.uri=sqlite:///{shared}/mlflow.db",
    ]
    runpy.run_path(str(ROOT / "search.py"), run_name="__main__")
    return began


def run_hydra() -> list[float]:
    import hydra

    import dxc.config.compose  # noqa: F401  registers the resolvers that conf/ uses

    began: list[float] = []

    @hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="train")
    def main(cfg: Any) -> None:
        began.append(time.time())

    sys.argv = ["train.py", "-m", *HYDRA_AXES]
    main()
    return began


def run_nni(trials: int) -> list[float]:
    """Run NNI. Raises an error of any class if NNI's manager cannot run."""
    from nni.experiment import Experiment

    Path("trial.py").write_text(NNI_TRIAL)
    experiment = Experiment("local")
    config = experiment.config
    config.trial_command = f"{sys.executable} trial.py"
    config.trial_code_directory = config.experiment_working_directory = str(Path.cwd())
    config.search_space = {axis: {"_type": "choice", "_value": values} for axis, values in NNI_AXES.items()}
    config.tuner.name = "Random"
    config.trial_concurrency, config.max_trial_number = 1, trials
    config.training_service.use_active_gpu = False
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    deadline = time.monotonic() + trials * NNI_PATIENCE_S
    try:
        experiment.start(port)
        require_local(experiment._proc.pid)
        while (status := experiment.get_status()) not in ("DONE", "STOPPED"):
            if status == "ERROR" or time.monotonic() > deadline:
                raise RuntimeError(f"the experiment came to no end: {status}")
            time.sleep(0.1)
        jobs = experiment.list_trial_jobs()
    finally:
        experiment.stop()
    if other := [job.status for job in jobs if job.status != "SUCCEEDED"]:
        raise RuntimeError(f"{len(other)} of {len(jobs)} trials ended as {other[0]}")
    return sorted(job.startTime / 1000 for job in jobs)


def require_local(pid: int) -> None:
    """Raise RuntimeError if the process can be reached from other machines."""
    import psutil

    for each in psutil.Process(pid).net_connections("tcp"):
        if each.status == psutil.CONN_LISTEN and each.laddr.ip != "127.0.0.1":
            raise RuntimeError(f"the web portal listens on {each.laddr.ip}, not on this machine alone")


def run_alone(key: str, shared: Path) -> None:
    """Run one contender in this fresh process. Writes began.json into its folder."""
    trials = CONTENDERS[key].trials
    ways = {
        "dxc": lambda: run_dxc("random", trials, shared),
        "dxc_pareto": lambda: run_dxc("pareto", trials, shared),
        "nni": lambda: run_nni(trials),
        "hydra": run_hydra,
    }
    Path("began.json").write_text(json.dumps(ways[key]()))


# --- the sitting -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    trials: int
    seconds: float
    per_trial: float

    @property
    def start_and_stop(self) -> float:
        return self.seconds - self.trials * self.per_trial


class FailedError(Exception):
    """A contender's process failed: the last line of its output, then all of it."""


def timed(key: str, folder: Path, shared: Path) -> Timing:
    """One run of a contender in a fresh process."""
    folder.mkdir()
    environment = dict(os.environ)
    if key == "nni":
        (folder / "local_only.js").write_text(LOCAL_ONLY)
        # NNI keeps a list of experiments in the home directory
        environment |= {"HOME": str(folder), "NODE_OPTIONS": f'--require "{folder / "local_only.js"}"'}
    started = time.perf_counter()
    child = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--run", key, str(shared)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.perf_counter() - started
    if child.returncode != 0:
        raise FailedError((child.stdout.strip().splitlines() or ["no output"])[-1], child.stdout)
    began = json.loads((folder / "began.json").read_text())
    warm_up = CONTENDERS[key].warm_up
    return Timing(len(began), seconds, (began[-1] - began[warm_up]) / (len(began) - 1 - warm_up))


def sitting(repeats: int, folder: Path) -> tuple[Timing, dict[str, list[Timing]], dict[str, str]]:
    """(the first search of the space, timings by contender, why contenders are left out)."""
    shared = folder / "shared"
    shared.mkdir()
    print("preparing: chips, costs of the networks ...", flush=True)
    first = timed("dxc", folder / "first", shared)
    timings: dict[str, list[Timing]] = {key: [] for key in CONTENDERS}
    skipped: dict[str, str] = {}
    for repeat in range(repeats):
        order = list(CONTENDERS)[::-1] if repeat % 2 else list(CONTENDERS)
        for key in order:
            if key in skipped:
                continue
            try:
                timing = timed(key, folder / f"{key}{repeat}", shared)
            except FailedError as error:
                if key != "nni":  # NNI's manager is a Node program that does not run everywhere
                    raise
                skipped[key], timings[key] = error.args[0], []
                continue
            timings[key].append(timing)
            print(f"  {CONTENDERS[key].name}: {timing.trials} in {timing.seconds:.1f} s", flush=True)
    return first, timings, skipped


def ratios(over: list[Timing], under: list[Timing]) -> list[float]:
    """Ratios of seconds per trial, one for each repeat."""
    return [a.per_trial / b.per_trial for a, b in zip(over, under, strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/search_overhead.json")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)  # one contender, in its own process
    arguments = parser.parse_args()
    if arguments.run:
        run_alone(arguments.run[0], Path(arguments.run[1]))
        return
    (ROOT / "outputs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "outputs") as name:
        try:
            first, timings, skipped = sitting(arguments.repeats, Path(name))
        except FailedError as error:
            raise SystemExit(f"a contender failed:\n{error.args[1]}") from error

    figures: dict[str, Any] = {}
    for key, contender in CONTENDERS.items():
        if key in skipped:
            print(f"{contender.name}: cannot run here, left out: {skipped[key]}")
            continue
        per_trial = [each.per_trial for each in timings[key]]
        start_and_stop = [each.start_and_stop for each in timings[key]]
        print(
            f"{contender.name}: {spread(per_trial, 3)} s a {contender.unit}; "
            f"start and stop {spread(start_and_stop, 1)} s"
        )
        figures[key] = {
            "trials": timings[key][0].trials,
            "warm_up": contender.warm_up,
            f"seconds_per_{contender.unit}": per_trial,
            "start_and_stop_seconds": start_and_stop,
        }
    print(
        f"the first search of a space starts and stops in {first.start_and_stop:.0f} s: it computes all costs"
    )
    compared = {}
    for over, under in (("nni", "dxc"), ("dxc", "hydra"), ("nni", "hydra")):
        if values := ratios(timings[over], timings[under]):
            print(
                f"{CONTENDERS[over].name} / {CONTENDERS[under].name}: {spread(values)} times the seconds a trial"
            )
            compared[f"{over}_over_{under}"] = values
    if arguments.save:
        about = {"repeats": arguments.repeats, "first_search_start_and_stop_seconds": first.start_and_stop}
        save("search_overhead", about | {"contenders": figures, "ratios": compared, "skipped": skipped})


if __name__ == "__main__":
    main()
