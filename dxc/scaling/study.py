"""The study: a grid of configurations, each run once and kept, then one table with what more devices would give."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dxc.config.checked import Part, checked
from dxc.config.identity import digest
from dxc.data.cache import usable_cores
from dxc.errors import ConfigError, DxcError, ScalingError, signals_raise
from dxc.files import write_atomically
from dxc.hardware.spec import device_name
from dxc.scaling import model
from dxc.scaling.launch import Absent, Launch, by_hand, launch_here, launch_on_slurm
from dxc.scaling.published import PUBLISHED
from dxc.scaling.results import MISSING, Gain, Outcome, Scaling, by_series, gains
from dxc.scaling.settings import LOOKS, Point, Settings
from dxc.scaling.sources import described
from dxc.scaling.worker import REQUEST, RESULT, Request
from dxc.text import counted, duration
from dxc.untrusted import load_json

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

FOLDER = "scaling"
KIND = "scaling"
"""dxc.kind of a run: no design, so that no analysis takes it for one."""
OF_RUN = (
    "images_per_second", "accuracy", "seconds_to_accuracy", "communication_share", "loader_share",
    "roofline_share", "device_hours",
)  # fmt: skip
"""Metrics that a run has by itself, named as in Outcome."""
OF_STUDY = ("speedup", "scaling_efficiency", "added_speedup", "accuracy_speedup", "price", "price_per_point")
"""Metrics of a run that depend on the others of its study."""

State = Literal["measured", "absent", "failed"]


class _Result(Part, extra="ignore"):
    """result.json of a run, without what is of no interest here."""

    images_per_second: float
    wall_seconds: float
    wall_spread_s: float
    steps: int
    step_s: float
    loader_s: float
    synced_s: float | None = None
    synced_error_s: float | None = None
    compute_s: float | None = None
    compute_error_s: float | None = None
    least_step_s: float | None = None
    gradient_bytes: int
    reduced: list[tuple[int, float, float]] = Field(default=[])
    accuracy: float | None = None
    seconds_to_accuracy: float | None = None
    device_name: str
    skipped_images: int = 0
    skipped_shards: int = 0
    total_s: float
    params: int


@dataclass
class Trial:
    """One configuration and what became of it."""

    point: Point
    request: Request
    identity: str
    folder: Path
    state: State = "absent"
    reason: str = ""
    result: _Result | None = None
    kept: bool = False
    bookkeeping_s: float = 0.0
    """What the study itself took for this run, beyond the run."""

    @property
    def outcome(self) -> Outcome | None:
        if self.result is None:
            return None
        given = self.result.model_dump()
        values: dict[str, Any] = {
            name: MISSING if given[name] is None else given[name]
            for name in Outcome.__dataclass_fields__
            if name in given
        }
        point, request = self.point, self.request
        return Outcome(
            scaling=point.scaling, nodes=point.nodes, devices=point.devices, device_batch=point.device_batch,
            simulated=request.simulated_step_ms > 0, **values,
        )  # fmt: skip


@dataclass
class Curve:
    """One series for the figure: measured points, Amdahl's law and the model over numbers of devices."""

    scaling: Scaling
    batch: int
    measured: list[tuple[int, float]]
    amdahl: list[tuple[float, float]] = field(default_factory=list)
    predicted: list[tuple[int, float, float, float]] = field(default_factory=list)
    """(devices, speed-up, low, high)."""


@dataclass
class Scaled:
    """What a study gave. frame: a row a configuration; published: rows of PUBLISHED; lines: the answer in words."""

    settings: Settings
    trials: list[Trial]
    frame: pd.DataFrame
    published: pd.DataFrame
    curves: list[Curve]
    lines: list[tuple[str, str]]
    folder: Path


@dataclass(frozen=True)
class Machine:
    """What runs: resolved from `auto` and null."""

    accelerator: Literal["cpu", "cuda"]
    name: str
    devices: int | None
    """On this machine; None where Slurm decides."""

    @property
    def noun(self) -> str:
        return "GPU" if self.accelerator == "cuda" else "processor device"


def scale(settings: Settings) -> Scaled:
    """Run the grid, or what is left of it, and report.

    Raises:
        ConfigError: a value cannot work.
        DataError: the images cannot be used.
        ScalingError: no configuration could be run.
        TrackingError: the store cannot be used.
    """
    machine = _machine(settings)
    trials = plan(settings, machine)
    if settings.dry_run:
        for trial in trials:
            trial.kept = _kept(trial)
            trial.reason = "" if trial.kept else "dry_run=true, not run"
        return _scaled(settings, trials, machine)
    root = Path(settings.cache_dir) / FOLDER
    with signals_raise(), _alone(root, settings), _Record(settings, machine) as record:
        for number, trial in enumerate(trials, 1):
            began = time.perf_counter()
            launched_s = _do(settings, machine, trial, f"{number} of {len(trials)}")
            record.keep(trial)
            trial.bookkeeping_s = time.perf_counter() - began - launched_s
        scaled = _scaled(settings, trials, machine)
        from dxc.report.scaling import write_scaling

        write_scaling(
            scaled.frame, scaled.published, scaled.curves, scaled.lines, scaled.folder, _title(settings)
        )
        record.report(scaled)
    if not any(trial.state == "measured" for trial in trials):
        raise ScalingError(
            "no configuration was measured: " + "; ".join(f"{t.point.name}: {t.reason}" for t in trials)
        )
    return scaled


def plan(settings: Settings, machine: Machine) -> list[Trial]:
    """The configurations of a study, with what each rank will be told."""
    gpu = machine.accelerator == "cuda"
    devices = settings.devices or _doubling(machine.devices or 1)
    batches = settings.batch or [64 if gpu else 8]
    seconds = 60 * (settings.minutes or (5 if gpu else 0.5))
    size = settings.data.get("size", "auto")
    auto = size == "auto"
    root = Path(settings.cache_dir) / FOLDER
    about = described(
        settings.source, settings.data, size=(224 if gpu else 64) if auto else size, folder=root
    )
    validation = settings.validation_images
    about["validation_images"] = (256 if gpu else 64) if validation is None else validation
    if auto and not gpu and about["kind"] != "chips":
        log.info(
            "on processors images have 64 x 64 pixels and runs take %s, so that they end soon (those of "
            "GPUs are data.size=224 minutes=5)", duration(seconds),
        )  # fmt: skip
    network = {**settings.model.values(), "in_channels": about["channels"], "num_classes": about["classes"]}
    optimizer = settings.optimizer.values()
    grid = settings.grid(devices, batches)
    needed = max((point.total_batch for point in grid), default=0)
    if about["images"] and needed > about["images"]:
        raise ConfigError(
            f"a step of {needed} images is more than the {about['images']} that there are to train; choose a "
            "smaller batch="
        )
    trials = []
    for point in grid:
        request = checked(
            Request,
            {
                "scaling": point.scaling,
                "nodes": point.nodes,
                "devices": point.devices,
                "device_batch": point.device_batch,
                "accelerator": machine.accelerator,
                "backend": "nccl" if gpu else "gloo",
                "precision": settings.precision or ("bf16-mixed" if gpu else "32-true"),
                "threads": settings.threads,
                "channels_last": settings.channels_last,
                "model": network,
                "optimizer": optimizer,
                "learning_rate": optimizer["lr"] * point.total_batch / settings.lr_batch,
                "rise_steps": settings.lr_steps,
                "about": about,
                "seed": settings.seed,
                "seconds": seconds,
                "target": settings.until,
                "look_every_s": seconds / LOOKS,
                "warmup_steps": settings.warmup_steps or (10 if gpu else 3),
                "measured_s": settings.measured_seconds,
                "timeout_s": settings.timeout_seconds,
                "simulated_step_ms": settings.simulated_step_ms,
            },
        )
        identity = _identity(request, machine)
        trials.append(Trial(point, request, identity, root / identity))
    return trials


def _doubling(here: int) -> list[int]:
    """1, 2, 4 ... up to the devices that are here; where there are several, two steps more, which are predicted."""
    most = 4 * here if here > 1 else 1
    return sorted({here, *(2**k for k in range(16) if 2**k <= most)})


def _identity(request: Request, machine: Machine) -> str:
    """Of all that the figures depend on: what is asked, the kind of device, the version of torch."""
    from importlib.metadata import version

    values = request.model_dump()
    del values["timeout_s"]
    about = {
        key: value for key, value in request.about.items() if key not in ("source", "listing", "root", "data")
    }
    if data := request.about.get("data"):
        about["data"] = {key: value for key, value in data.items() if key not in ("cache_dir", "progress")}
    return digest({**values, "about": about, "device": machine.name, "torch": version("torch")})


def _machine(settings: Settings) -> Machine:
    if settings.on_slurm:
        accelerator: Literal["cpu", "cuda"] = "cuda" if settings.accelerator == "cuda" else "cpu"
        partition = settings.launcher.get("partition") or "default"
        return Machine(accelerator, f"Slurm, partition {partition}", None)
    import torch

    there = torch.cuda.is_available()
    if settings.accelerator == "cuda" and not there:
        raise ConfigError(
            "accelerator=cuda: there is no CUDA device here; accelerator=cpu runs on the processor"
        )
    if there and settings.accelerator != "cpu":
        return Machine("cuda", device_name("cuda"), torch.cuda.device_count())
    cores = usable_cores() // settings.threads
    if not cores:
        raise ConfigError(
            f"threads={settings.threads}: no device of so many cores is here, this process may use {usable_cores()}"
        )
    return Machine("cpu", device_name(), cores)


def _do(settings: Settings, machine: Machine, trial: Trial, place: str) -> float:
    """Run one configuration unless its result is there. Returns the time that the run itself took, in seconds."""
    name = f"{trial.point.name} ({place})"
    if not settings.again and _kept(trial):
        trial.kept = True
        log.info("%s: kept, %s", name, _brief(trial))
        return 0.0
    if settings.again:
        shutil.rmtree(trial.folder, ignore_errors=True)
    trial.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(trial.folder / REQUEST, trial.request.model_dump_json())
    if reason := _missing(settings, machine, trial):
        trial.reason = reason
        log.info("%s: absent, %s", name, reason)
        return 0.0
    launch: Launch = partial(launch_on_slurm, options=settings.launcher) if settings.on_slurm else launch_here
    began = time.perf_counter()
    try:
        launch(trial.folder)
        if not _kept(trial):
            raise ScalingError(f"the run left no result that can be read in {trial.folder}")
        log.info("%s: %s", name, _brief(trial))
    except Absent as error:
        trial.reason = str(error)
        log.info("%s: absent, %s", name, error)
    except ScalingError as error:
        trial.state, trial.reason = "failed", str(error)
        log.error("%s: failed: %s", name, error)
    return time.perf_counter() - began


def _missing(settings: Settings, machine: Machine, trial: Trial) -> str:
    """What a configuration needs that is not here; '' where all is."""
    point, about = trial.point, trial.request.about
    if about["kind"] == "shards" and point.total > (shards := about["shards"]):
        return (
            f"{counted(point.total, 'device')} need a shard each to train, and there are {shards}; write the images to "
            "more shards"
        )
    if machine.devices is None:
        return ""
    if point.nodes > 1:
        return (
            f"{point.nodes} nodes needed, 1 here; hydra/launcher=submitit_slurm, or on each node: "
            f"{by_hand(trial.request, trial.folder)}"
        )
    oversubscribed = settings.oversubscribe and machine.accelerator == "cpu"
    if point.devices > machine.devices and not oversubscribed:
        return f"{counted(point.devices, 'device')} needed, {machine.devices} here"
    return ""


def _kept(trial: Trial) -> bool:
    """Read the result of a run that was done before."""
    try:
        trial.result = checked(_Result, load_json(trial.folder / RESULT))
    except (OSError, ValueError, DxcError):
        return False
    trial.state, trial.reason = "measured", _remark(trial)
    return True


def _remark(trial: Trial) -> str:
    result, target = trial.result, trial.request.target
    if result is not None and target is not None and result.seconds_to_accuracy is None:
        best = "-" if result.accuracy is None else f"{result.accuracy:.4f}"
        return f"accuracy {target:g} was not reached within {duration(trial.request.seconds)}; it was {best} at the end"
    return ""


def _brief(trial: Trial) -> str:
    outcome = trial.outcome
    assert outcome is not None  # only of a run with a result
    share = (
        ""
        if math.isnan(outcome.communication_share)
        else f", communication {outcome.communication_share:.0%}"
    )
    return (
        f"{outcome.images_per_second:.4g} images/s, bound by {outcome.bound_by}{share}, "
        f"{outcome.wall_seconds:.1f} s on every rank"
    )


@contextlib.contextmanager
def _alone(root: Path, settings: Settings) -> Iterator[None]:
    """One study at a time measures on a machine; on Slurm each has nodes of its own."""
    if settings.on_slurm:
        yield
        return
    from filelock import FileLock, Timeout

    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / "measuring.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another study measures on this machine; waiting for its end")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fits(outcomes: Sequence[Outcome]) -> dict[bool, model.Fit]:
    """A model for one node, and one for several, whose links are others. Key: whether there are several nodes."""
    found = {}
    for several in (False, True):
        alone = [each for each in outcomes if each.total == 1]
        chosen = [each for each in outcomes if (each.nodes > 1) == several and each.total > 1]
        if (fitted := model.fit([*alone, *chosen])) is not None:
            found[several] = fitted
    return found


def _scaled(settings: Settings, trials: Sequence[Trial], machine: Machine) -> Scaled:
    import pandas as pd

    outcomes = {id(trial): outcome for trial in trials if (outcome := trial.outcome) is not None}
    rows = gains(outcomes.values(), settings.price_per_gpu_hour)
    fitted = fits(list(outcomes.values()))
    by_outcome = {id(row.outcome): row for row in rows}
    table = []
    for trial in trials:
        outcome = outcomes.get(id(trial))
        gain = by_outcome[id(outcome)] if outcome is not None else None
        table.append(_row(trial, gain, fitted.get(trial.point.nodes > 1)))
    published = pd.DataFrame(
        [{**each._asdict(), "scaling_efficiency": each.efficiency} for each in PUBLISHED]
        if settings.published and "resnet50" in settings.model.name
        else []
    )
    curves = _curves(rows, fitted.get(False) or fitted.get(True), trials)
    folder = Path(settings.out) / settings.study
    lines = _lines(settings, machine, trials, rows, fitted)
    return Scaled(settings, list(trials), pd.DataFrame(table), published, curves, lines, folder)


def _row(trial: Trial, gain: Gain | None, fitted: model.Fit | None) -> dict[str, Any]:
    """One row of the table. What is not known is NaN or ''."""
    point = trial.point
    row: dict[str, Any] = {
        "state": trial.state,
        "scaling": point.scaling,
        "nodes": point.nodes,
        "devices": point.total,
        "device_batch": point.device_batch,
        "total_batch": point.total_batch,
        "identity": trial.identity,
        "remark": trial.reason,
    }
    if gain is not None:
        outcome = gain.outcome
        return {
            **row,
            "state": "simulated" if outcome.simulated else "measured",
            "images_per_second": outcome.images_per_second,
            "speedup": gain.speedup,
            "scaling_efficiency": gain.efficiency,
            "added_speedup": gain.added_speedup,
            "accuracy": outcome.accuracy,
            "seconds_to_accuracy": outcome.seconds_to_accuracy,
            "accuracy_speedup": gain.accuracy_speedup,
            "communication_share": outcome.communication_share,
            "loader_share": outcome.loader_share,
            "roofline_share": outcome.roofline_share,
            "bound_by": outcome.bound_by,
            "device_hours": outcome.device_hours,
            "price": gain.price,
            "price_per_point": gain.price_per_point,
            "wall_seconds": outcome.wall_seconds,
        }
    if fitted is not None and trial.state == "absent":
        predicted = fitted.predict(point.total, point.scaling, point.batch)
        return {
            **row,
            "state": "predicted",
            "images_per_second": predicted.images_per_second,
            "speedup": predicted.speedup,
            "speedup_low": predicted.low,
            "speedup_high": predicted.high,
            "scaling_efficiency": predicted.efficiency,
        }
    return row


def _curves(rows: Sequence[Gain], fitted: model.Fit | None, trials: Sequence[Trial]) -> list[Curve]:
    asked = max(trial.point.total for trial in trials)
    curves = []
    for (scaling, batch), series in by_series(rows).items():
        measured = [(row.outcome.total, row.speedup) for row in series]
        largest = max(n for n, _ in measured)
        end = max(2 * largest, asked)
        end = end if scaling == "weak" else min(end, batch)
        curve = Curve(scaling, batch, measured)
        totals = [2**k for k in range(13) if 2**k <= end]
        law = model.amdahl(*zip(*measured, strict=True))
        if law is not None:
            curve.amdahl = [(float(n), law.speedup(n)) for n in totals]
        if fitted is not None:
            ahead = sorted({largest, *(n for n in totals if n > largest)})
            found = [fitted.predict(n, scaling, batch) for n in ahead]
            curve.predicted = [(each.total, each.speedup, each.low, each.high) for each in found]
        curves.append(curve)
    return curves


def _lines(
    settings: Settings,
    machine: Machine,
    trials: Sequence[Trial],
    rows: Sequence[Gain],
    fitted: Mapping[bool, model.Fit],
) -> list[tuple[str, str]]:
    """The answer in words: labels and texts."""
    lines = []
    for (scaling, batch), series in by_series(rows).items():
        title = f"{scaling}, batch {batch}"
        last = series[-1]
        if last.outcome.total > series[0].outcome.total:
            added = (
                ""
                if math.isnan(last.added_speedup)
                else f", {last.added_speedup:.2f} for each device added last"
            )
            share = last.outcome.communication_share
            network = "" if math.isnan(share) else f", {share:.0%} of a step is communication"
            lines.append(
                (
                    title,
                    f"{last.outcome.total} devices gave {last.speedup:.2f} times one device's images/s (efficiency "
                    f"{last.efficiency:.0%}{added}); bound by {last.outcome.bound_by}{network}",
                )
            )
        measured = [(row.outcome.total, row.speedup) for row in series]
        if (law := model.amdahl(*zip(*measured, strict=True))) is not None:
            error = "" if math.isnan(law.error) else f" ± {law.error:.1%}"
            most = "no limit" if law.serial == 0 else f"at most {1 / law.serial:.1f} times"
            lines.append(("", f"Amdahl's law, fitted: {law.serial:.1%}{error} of the work is serial, {most}"))
        several = series[-1].outcome.nodes > 1
        if (found := fitted.get(several)) is not None:
            stop = found.stops_at(scaling, batch)
            where = f"from {stop} devices on" if stop else f"nowhere up to {model.MOST_DEVICES} devices"
            lines.append(("", f"predicted: efficiency falls below {model.STOPS_BELOW:.0%} {where}"))
    for several, found in fitted.items():
        step = found.model
        speed = "not limited" if math.isinf(step.bandwidth) else f"{step.bandwidth / 1e6:,.0f} MB/s"
        lines.append(
            (
                "model, several nodes" if several else "model",
                f"{step.gradient_bytes / 1e6:.1f} MB of gradients a step over {speed} with "
                f"{1e3 * step.latency_s:.2f} ms a message; a step feels {step.exposed:.2f} of a bare "
                f"all-reduce. Fitted to runs of up to {found.largest} devices; beyond, figures are extrapolated, with "
                f"{model.LEVEL:.0%} bounds",
            )
        )
    for trial in trials:
        if trial.state == "failed":
            lines.append(("failed", f"{trial.point.name}: {trial.reason}"))
        elif trial.state == "absent":
            lines.append(("absent", f"{trial.point.name}: {trial.reason}"))
        elif trial.reason:
            lines.append(("not reached", f"{trial.point.name}: {trial.reason}"))
    for trial in trials:
        if (result := trial.result) is not None and (result.skipped_images or result.skipped_shards):
            left = [
                counted(number, noun)
                for number, noun in ((result.skipped_images, "image"), (result.skipped_shards, "shard"))
                if number
            ]
            lines.append(("left out", f"{trial.point.name}: {' and '.join(left)} could not be read"))
    request = trials[0].request
    simulated = (
        f", with a pause of {request.simulated_step_ms:g} ms a step that stands for computation"
        * bool(request.simulated_step_ms)
    )
    many = settings.oversubscribe and max(t.point.total for t in trials) > (machine.devices or 0)
    lines.append(
        (
            "machine",
            f"{machine.name}; a device is "
            + ("one GPU" if machine.accelerator == "cuda" else f"{counted(request.threads, 'core')}")
            + f"; {request.precision}, {request.backend}"
            + f"; images of {request.about['size']} x {request.about['size']} pixels"
            + simulated
            + ("; more devices than cores: such runs share them" if many else ""),
        )
    )
    lines.append(
        (
            "method",
            f"{request.warmup_steps} warm-up steps come before each timed part and leave nothing behind; validation is "
            f"outside of it. Learning rate {settings.optimizer.values()['lr']:g} x images of a step / "
            f"{settings.lr_batch}, reached over {settings.lr_steps} steps",
        )
    )
    if request.about["kind"] == "made":
        lines.append(
            ("", "images are made on the device: accuracies compare runs, and say nothing of real images")
        )
    return lines


def _title(settings: Settings) -> str:
    return f"Scaling of {settings.model.name}: study {settings.study}"


class _Record:
    """The study in MLflow: a parent run, and a child run of each configuration that was measured or failed.

    Args:
        settings: of the study.
        machine: that runs it.
    """

    def __init__(self, settings: Settings, machine: Machine) -> None:
        self._settings, self._machine = settings, machine
        self._store: Any = None
        self._parent = ""
        self._runs: dict[str, str] = {}
        """Ids of finished runs, by identity."""

    def __enter__(self) -> _Record:
        settings = self._settings
        if settings.tracking.log:
            from dxc.tracking.store import Store

            tracking = settings.tracking
            self._store = Store(tracking.uri, settings.study, patience_s=60, artifacts=tracking.artifacts)
            parents = self._store.runs(dxc__kind="study", dxc__scaling="study")
            tags = {"dxc.kind": "study", "dxc.scaling": "study", "dxc.study": settings.study}
            self._parent = (
                parents[0].run_id if parents else self._store.create(f"scaling {settings.study}", tags)
            )
            self._store.status(self._parent, "RUNNING")
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._store is not None:
            ended = "FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED"
            with contextlib.suppress(Exception):  # the first error is the one to show
                self._store.status(self._parent, ended)

    def keep(self, trial: Trial) -> None:
        """Write a configuration's run, once."""
        if self._store is None or trial.state == "absent":
            return
        tags = {"dxc.kind": KIND, "dxc.trial": trial.identity}
        if trial.kept:
            before = self._store.runs(dxc__kind=KIND, dxc__trial=trial.identity)
            if finished := [run.run_id for run in before if run.status == "FINISHED"]:
                self._runs[trial.identity] = finished[0]
                return
        point, request = trial.point, trial.request
        params = {
            "model": self._settings.model.name,
            **{
                key: getattr(request, key)
                for key in ("scaling", "nodes", "devices", "device_batch", "precision")
            },
            "batch": point.batch,
            "source": request.about["kind"],
            "size": request.about["size"],
            "minutes": request.seconds / 60,
            "seed": request.seed,
        }
        name = self._machine.name if trial.result is None else trial.result.device_name
        tags |= {"device": name, "dxc.measured_on": name, "dxc.study": self._settings.study}
        run = self._store.create(point.name, tags, params=params, parent=self._parent)
        if (outcome := trial.outcome) is not None:
            metrics = {name: getattr(outcome, name) for name in OF_RUN}
            self._store.log(run, {name: value for name, value in metrics.items() if math.isfinite(value)})
            self._store.tag(run, {"dxc.state": "finished", "dxc.bound_by": outcome.bound_by})
            self._store.status(run, "FINISHED")
            self._runs[trial.identity] = run
        else:
            self._store.tag(run, {"dxc.state": "failed", "dxc.reason": trial.reason})
            self._store.status(run, "FAILED")

    def report(self, scaled: Scaled) -> None:
        """Keep the report with the parent run, and what only the whole study knows with each of its runs."""
        if self._store is None:
            return
        for row in scaled.frame.to_dict("records"):
            if (run := self._runs.get(row["identity"])) is not None:
                known = {name: row[name] for name in OF_STUDY if math.isfinite(row[name])}
                self._store.log(run, known)
        self._store.log_files(self._parent, scaled.folder)
