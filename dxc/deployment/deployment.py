"""The trunk of a deployment: tracked runs -> device -> a record a network -> the same runs.

    choose the runs -> hold the device -> for each network: send it and its images -> run -> fetch -> judge -> MLflow

A network that was proved under the same identity (file, images, device, protocol, meter) is not run again. Every step
leaves its result before the next one begins: on the device, in cache_dir, in MLflow. So the same command goes on,
whatever ended the one before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dxc.analysis.analyze import selected, with_front
from dxc.analysis.condition import meets
from dxc.analysis.deployed import PROVED
from dxc.analysis.designs import default_objectives
from dxc.analysis.network_file import NETWORK
from dxc.analysis.runs import forget, read_runs
from dxc.config.identity import digest
from dxc.deploy.device import FOLDER, Device, Payload, RefusedError, UnreachableError
from dxc.deploy.metadata import Metadata, read_metadata
from dxc.deployment.images import ProofImages, proof_images, random_images, read_config
from dxc.deployment.meter import NO_METER, Meter, Verdict, Windows, merit, opened
from dxc.deployment.opset import needed_runtime
from dxc.deployment.record import DeviceRecord, Environment
from dxc.deployment.settings import Deploy
from dxc.errors import AnalysisError, DxcError, ExportError, HardwareError
from dxc.files import folder_name, whole_folder, write_atomically
from dxc.hardware.measure.energy.metering import FILE as ENERGY
from dxc.hardware.measure.energy.metering import artifact_of
from dxc.hardware.measure.energy.protocol import advice
from dxc.hardware.onnx_file import load_onnx
from dxc.metrics import (
    ENERGY_METER,
    ENERGY_VERDICT,
    INVALID,
    LATENCY_VERDICT,
    METRICS,
    VALID,
    VERDICTS,
    is_declared,
    metric_of,
    why_invalid,
)
from dxc.text import counted
from dxc.tracking.patience import StoredRun
from dxc.tracking.reader import Reader, study_names
from dxc.tracking.store import Store
from dxc.untrusted import load_json

log = logging.getLogger(__name__)

PROTOCOL = 1
"""Raise it when the meaning of a record changes. What was measured before is then measured again."""
METERED_SECONDS = 60.0
PLAIN_SECONDS = 1.0
MEASURED_ON = "dxc.measured_on"
MAX_RECORD_BYTES = 1_000_000


@dataclass(frozen=True)
class Proof:
    """What became of one network.

    Attributes:
        run_id: of the design.
        name: of the design.
        trained: accuracy that its training gave; None: not known.
        metrics: what the device gave.
        state: measured, kept (measured before, and not again), or failed.
        notes: why a figure is missing, and what to know of the others.
        verdicts: {tag: what it says}; see dxc.metrics.Metric.verdicts.
    """

    run_id: str
    name: str
    trained: float | None
    metrics: Mapping[str, float]
    state: str
    notes: Sequence[str] = ()
    verdicts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Deployment:
    """The result of a deployment.

    Attributes:
        title: of the study or the runs.
        device: as the tag dxc.measured_on says it.
        emulated: whether that is no real device.
        meter: its name, with the word "simulated" where it is none; '' without one.
        proofs: one a network, in the order of the runs.
        images: what the networks were judged by, one line for each set.
        notes: on all of them.
        sent_bytes: files that were sent to the device.
        folder: with the table.
    """

    title: str
    device: str
    emulated: bool
    meter: str
    proofs: Sequence[Proof]
    images: Sequence[str]
    notes: Sequence[str]
    sent_bytes: int
    folder: Path

    @property
    def failed(self) -> list[Proof]:
        """Networks without a result."""
        return [each for each in self.proofs if each.state == "failed"]


@dataclass(frozen=True)
class _Network:
    """One tracked run with its network."""

    run: StoredRun
    study: str
    payload: Payload
    metadata: Metadata
    needs_runtime: tuple[int, int]
    config: Mapping[str, Any]


@dataclass
class _Deploying:
    """What all networks of a deployment share."""

    asked: Deploy
    device: Device
    environment: Environment
    meter: Meter | None
    stores: dict[str, Store] = field(default_factory=dict)
    images: dict[str, ProofImages] = field(default_factory=dict)

    @property
    def described(self) -> str:
        return self.environment.described(emulated=self.emulated)

    @property
    def emulated(self) -> bool:
        # the project's own emulated device says so itself
        return self.asked.hardware.emulated or "emulated" in self.environment.device.lower()

    @property
    def protocol(self) -> dict[str, Any]:
        """How a network is run, as the worker is told it."""
        seconds = self.asked.seconds
        if seconds is None:
            seconds = PLAIN_SECONDS if self.meter is None else METERED_SECONDS
        idle = self.asked.idle_seconds if self.meter is not None else 0.0
        return {"repeats": self.asked.repeats, "seconds": float(seconds), "idle_seconds": float(idle)}

    def identity(self, network: Payload, images: ProofImages) -> str:
        """Of what is measured; equal where nothing has to be measured again."""
        about = self.environment
        return digest(
            {
                "protocol": [PROTOCOL, self.protocol],
                "network": network.sha256,
                "images": [images.images.sha256, images.labels and images.labels.sha256, images.prepared],
                "device": [self.described, about.machine, about.numpy, about.host],
                "meter": None if self.meter is None else self.meter.name,
            }
        )


def deploy(asked: Deploy) -> Deployment:
    """Prove designs on their device, and write what it gave into their tracked runs.

    Args:
        asked: see conf/deploy.yaml.

    Raises:
        TrackingError: the store, a study or a run is not there.
        AnalysisError: there is no front.
        HardwareError: the device cannot be used.
    """
    reader = Reader(asked.tracking.uri, artifacts=asked.tracking.artifacts)
    runs, title, notes = _chosen(asked, reader)
    hardware = asked.hardware
    folder = asked.folder or (FOLDER if hardware.host else str(Path(asked.cache_dir).absolute() / "device"))
    device = Device(
        hardware.host,
        folder=folder,
        python=hardware.python if hardware.host else None,
        threads=hardware.threads,
        provider=hardware.provider,
        affinity=hardware.affinity,
    )
    log.info("deploying %s to %s", counted(len(runs), "network"), device.where)
    with device.held(log.info), opened(asked.energy, hardware.host) as meter:
        probed = device.probe()
        deploying = _Deploying(asked, device, Environment.model_validate(probed["environment"]), meter)
        log.info("%s: %s", device.where, deploying.described)
        if meter is None:
            notes.append(f"no energy: {NO_METER}")
        proofs = [_proof(deploying, reader, run, f"{n}/{len(runs)}") for n, run in enumerate(runs, 1)]
    images = list(dict.fromkeys(each.described for each in deploying.images.values()))
    return Deployment(
        title=title,
        device=deploying.described,
        emulated=deploying.emulated,
        meter="" if meter is None else meter.name,
        proofs=proofs,
        images=images,
        notes=notes,
        sent_bytes=device.sent_bytes,
        folder=Path(asked.out) / folder_name(title),
    )


def _chosen(asked: Deploy, reader: Reader) -> tuple[list[StoredRun], str, list[str]]:
    """The runs that are deployed, a title for them, and notes."""
    if asked.runs:
        runs = [reader.run(run_id)[0] for run_id in asked.runs]
        if missing := [each.run_id for each in runs if not (each.is_trial and each.is_finished)]:
            raise AnalysisError(f"runs: {missing[0]} is not a finished run of a design")
        return runs, "runs", []
    found = read_runs(asked.tracking.uri, asked.study, cache_dir=Path(asked.cache_dir), refresh=asked.refresh)
    frame, title = found.frame, "+".join(asked.study)
    if frame.empty:
        names = ", ".join(study_names(asked.tracking.uri)) or "none"
        raise AnalysisError(f"study {title} has no finished run; there are the studies {names}")
    if asked.designs == "all":
        if asked.where:
            frame = frame[meets(frame, asked.where)]
        if frame.empty:
            raise AnalysisError(f"where={asked.where} leaves no finished run")
        return [reader.run(run_id)[0] for run_id in frame["run_id"]], title, []
    objectives = asked.objectives
    if objectives is None:  # not those that deploying changes: the front has to be the same when it goes on
        usual = default_objectives(frame)
        objectives = [name for name in usual if METRICS[name].origin != "measured"]
    designs, parsed = selected(frame, asked.where, objectives, asked.mix)
    members, _, _ = with_front(designs, parsed)
    first, row = next(iter(parsed.items()))
    front = members[members["front"]].sort_values(first, ascending=not row.maximise, kind="stable")
    note = f"the front of {title} in {', '.join(parsed)}: {len(front)} of {counted(len(members), 'design')}"
    return [reader.run(run_id)[0] for run_id in front["run_id"]], title, [note]


def _proof(deploying: _Deploying, reader: Reader, run: StoredRun, place: str) -> Proof:
    """One network, from its run to its run. What is wrong with it does not stop the others."""
    name, trained = run.tags.get("mlflow.runName", run.run_id), run.metrics.get("accuracy")
    try:
        network = _network(reader, run)
        images = _images(deploying, network)
        key = deploying.identity(network.payload, images)
        if run.tags.get(PROVED) == key and not deploying.asked.again:
            log.info("%s %s: measured before, and not again (again=true does)", place, name)
            verdicts = {tag: run.tags[tag] for tag in VERDICTS if tag in run.tags}
            return Proof(run.run_id, name, trained, _measured(run), "kept", _refused(verdicts), verdicts)
        record, times, outputs, verdict, state = _recorded(deploying, network, images, key, f"{place} {name}")
        metrics, notes, verdicts = _track(deploying, network, key, record, times, outputs, verdict, images)
        return Proof(run.run_id, name, trained, metrics, state, [*notes, *_refused(verdicts)], verdicts)
    except UnreachableError:
        raise  # the others would fail too
    except DxcError as error:
        log.warning("%s %s: %s", place, name, error)
        return Proof(run.run_id, name, trained, {}, "failed", [str(error)])


def _refused(verdicts: Mapping[str, str]) -> list[str]:
    """A note for each figure that was measured and does not count."""
    reasons = {tag: why for tag, said in verdicts.items() if (why := why_invalid(said))}
    notes = [f"{VERDICTS[tag]} is invalid: {why}" for tag, why in reasons.items()]
    if ENERGY_VERDICT in reasons:
        notes.append(f"for a valid energy: {advice([reasons[ENERGY_VERDICT]])}")
    return notes


def _measured(run: StoredRun) -> dict[str, float]:
    """What a run has of the device that it was measured on last."""
    return {
        name: value
        for name, value in run.metrics.items()
        if is_declared(name) and metric_of(name).origin == "measured" and np.isfinite(value)
    }


def _network(reader: Reader, run: StoredRun) -> _Network:
    with tempfile.TemporaryDirectory() as folder:
        path = reader.artifact(run.run_id, NETWORK, Path(folder), under=run.artifact_uri)
        config = reader.artifact(run.run_id, "config.yaml", Path(folder), under=run.artifact_uri)
        if path is None or config is None:
            raise ExportError(
                f"run {run.run_id} has no {NETWORK if path is None else 'config.yaml'} any more"
            )
        model = load_onnx(path)
        return _Network(
            run,
            reader.run(run.run_id)[1],
            Payload(path.read_bytes(), "the network"),
            read_metadata(model, f"{NETWORK} of run {run.run_id}"),
            needed_runtime(model),
            read_config(config, run.run_id),
        )


def _images(deploying: _Deploying, network: _Network) -> ProofImages:
    """The images of a network. Networks of the same images share them."""
    run, asked = network.run, deploying.asked
    fold, data_hash = run.tags.get("dxc.exported_fold", ""), run.tags.get("dxc.data", "")
    shared = digest([network.config, fold, data_hash, list(network.metadata.channels)])
    if asked.images == "random":
        shared = digest([list(network.metadata.channels), network.metadata.size])
        if shared not in deploying.images:
            deploying.images[shared] = random_images(network.metadata, run_id=run.run_id)
    elif shared not in deploying.images:
        deploying.images[shared] = proof_images(
            network.config,
            run_id=run.run_id,
            fold=fold,
            data_hash=data_hash,
            metadata=network.metadata,
            cache_dir=asked.cache_dir,
            root=asked.source.root,
            progress=asked.progress,
        )
    return deploying.images[shared]


def _recorded(
    deploying: _Deploying, network: _Network, images: ProofImages, key: str, name: str
) -> tuple[DeviceRecord, np.ndarray, dict[str, bytes], Verdict, str]:
    """The record of a network, the times of its runs in ms, its answers, the verdict on its energy, and the state.

    It is kept in cache_dir/deployments/KEY.
    """
    home = Path(deploying.asked.cache_dir) / "deployments"
    home.mkdir(parents=True, exist_ok=True)
    if not deploying.asked.again and (kept := _kept(home / key)) is not None:
        log.info("%s: measured before, and not again (again=true does)", name)
        return *kept, "kept"
    needed, has = network.needs_runtime, deploying.environment.runtime_version
    if _version(has) < needed:
        raise HardwareError(
            f"{deploying.device.where} has {deploying.environment.runtime} {has}, and this network needs "
            f"{'.'.join(map(str, needed))} or newer (its operator set); update it there"
        )
    device = deploying.device
    attempt = secrets.token_hex(8) if deploying.asked.again or deploying.meter else ""
    files = [each for each in (images.images, images.labels, network.payload) if each is not None]
    request = {
        "key": key,
        "network": network.payload.sha256,
        "images": images.images.sha256,
        "labels": images.labels and images.labels.sha256,
        "prepared": images.prepared,
        **deploying.protocol,
    }
    for last in (False, True):
        for file in files:
            device.put(file, lambda line: log.info("%s: %s", name, line))
        windows = Windows()
        try:
            content = device.run(
                {**request, "attempt": attempt}, _told(windows, name, deploying.asked.repeats)
            )
        except RefusedError as refused:
            if refused.kind != "missing" or last:
                raise
            continue  # a file there was damaged, and is sent again
        if deploying.meter is None or windows.whole or last:
            break
        log.info("%s: the connection was lost, so its energy is not known; once more", name)
        attempt = secrets.token_hex(8)
    record = DeviceRecord.of(content, device.where)
    fetched = {name: device.fetch(key, name, about.model_dump()) for name, about in record.files.items()}
    times = np.frombuffer(fetched["times.bin"], "<f4").astype(float)
    verdict = _verdict(deploying, record, times, windows)
    shutil.rmtree(home / key, ignore_errors=True)
    with whole_folder(home / key) as draft:
        for file_name, file_content in fetched.items():
            write_atomically(draft / file_name, file_content)
        write_atomically(draft / "record.json", json.dumps(content, indent=1))
        write_atomically(draft / ENERGY, json.dumps(asdict(verdict), indent=1))
    device.drop(objects=[network.payload.sha256], results=[key])  # images stay, for the networks to come
    outputs = {file: value for file, value in fetched.items() if file != "times.bin"}
    return record, times, outputs, verdict, "measured"


def _told(windows: Windows, name: str, repeats: int) -> Any:
    """Takes events of a run: windows are made of them, and a person is told."""

    def take(event: dict[str, Any], at_s: float) -> None:
        windows(event, at_s)
        kind = event.get("event")
        if "waiting_for" in event:
            log.info("%s: waiting for %.200s", name, event["waiting_for"])
        elif kind == "images":
            log.info("%s: running %s, %d times", name, counted(int(event["count"]), "image"), repeats)
        elif kind == "begin" and event.get("kind") == "idle":
            log.info("%s: the device is left alone, to see what it takes when idle", name)
        elif kind == "progress":
            log.info("%s: repeat %d, %d of %d images", name, event["repeat"], event["done"], event["of"])
        elif kind == "lost":
            log.info("%s: %s The run goes on there; trying to reach it", name, event["message"])

    return take


def _verdict(deploying: _Deploying, record: DeviceRecord, times: np.ndarray, windows: Windows) -> Verdict:
    if deploying.meter is None:
        return Verdict(reason=NO_METER, metered=False)
    listed = [asdict(each) for each in windows.found]
    if not windows.whole:
        why = "the connection was lost while it ran, so it is not known when"
        return Verdict(content={"windows": listed}, reason=why)
    return deploying.meter.verdict(windows.found, latency_ms=float(times.mean()), throttled=record.throttled)


def _kept(folder: Path) -> tuple[DeviceRecord, np.ndarray, dict[str, bytes], Verdict] | None:
    """A record in cache_dir; None where there is none that is whole."""
    try:
        record = DeviceRecord.of(load_json(folder / "record.json", limit=MAX_RECORD_BYTES), str(folder))
        verdict = Verdict(**load_json(folder / ENERGY, limit=200_000_000))
        files = {name: (folder / name).read_bytes() for name in record.files}
        if any(hashlib.sha256(files[n]).hexdigest() != about.sha256 for n, about in record.files.items()):
            return None
    except (OSError, ValueError, TypeError, HardwareError):
        return None
    times = np.frombuffer(files.pop("times.bin"), "<f4").astype(float)
    return record, times, files, verdict


def _track(
    deploying: _Deploying,
    network: _Network,
    key: str,
    record: DeviceRecord,
    times: np.ndarray,
    outputs: Mapping[str, bytes],
    verdict: Verdict,
    images: ProofImages,
) -> tuple[dict[str, float], list[str], dict[str, str]]:
    """Write a record into its run: files first, then values and the name of the device in one call.

    Returns:
        Metrics, notes on them, and verdicts; see Proof.
    """
    latency, invalid = record.latency(times)
    accuracy = record.accuracy
    metrics = {
        **({} if accuracy is None else {"device_accuracy": accuracy}),
        "peak_memory_mb": record.peak_memory_bytes / 1e6,
        **latency,
        **verdict.metrics,
    }
    metrics |= merit(metrics)
    notes = record.notes()
    if accuracy is None:
        notes.append("no accuracy: random images have no labels (images=test gives it)")
    verdicts = {
        LATENCY_VERDICT: f"{INVALID}{invalid}" if invalid else VALID,
        ENERGY_VERDICT: verdict.said,
    }
    run, asked = network.run, deploying.asked
    if network.study not in deploying.stores:
        deploying.stores[network.study] = Store(
            asked.tracking.uri, network.study, patience_s=60, artifacts=asked.tracking.artifacts
        )
    store = deploying.stores[network.study]
    content = {
        "device": deploying.described,
        "emulated": deploying.emulated,
        "images": images.described,
        "metrics": metrics,
        "notes": notes,
        "verdicts": {VERDICTS[tag]: said for tag, said in verdicts.items()},
        "record": record.model_dump(),
    }
    with tempfile.TemporaryDirectory() as folder:
        energy = Path(folder) / artifact_of(deploying.described)
        home = energy.parent
        home.mkdir(parents=True)
        (home / "record.json").write_text(json.dumps(content, indent=1))
        energy.write_text(json.dumps(asdict(verdict), indent=1))
        np.save(home / "times_ms.npy", times.astype(np.float32))
        for name, shape in record.outputs.items():
            answers = np.frombuffer(outputs[f"output-{name}.bin"], "<f4").reshape(shape)
            np.save(home / f"{name}.npy", answers)
        store.log_files(run.run_id, Path(folder))
    tags = {
        MEASURED_ON: deploying.described,
        **verdicts,
        "dxc.runtime": f"{record.environment.runtime} {record.environment.runtime_version}",
        ENERGY_METER: "" if deploying.meter is None else deploying.meter.name,
        "dxc.emulated": str(deploying.emulated).lower(),
        "dxc.proved_by": images.described,
        PROVED: key,
    }
    gone = [name for name in _of_a_device(run) if name not in metrics]
    store.log_measured(run.run_id, metrics, tags, gone=gone)
    forget(asked.tracking.uri, network.study, cache_dir=Path(asked.cache_dir))
    return metrics, notes, verdicts


def _of_a_device(run: StoredRun) -> list[str]:
    """Metrics of a run that are of the device in its tag dxc.measured_on, and that no other device may keep."""
    return [
        name
        for name, value in run.metrics.items()
        if is_declared(name) and MEASURED_ON in metric_of(name).comparable_by and np.isfinite(value)
    ]


def _version(text: str) -> tuple[int, int]:
    """(1, 17) of '1.17.3'; larger than any where it cannot be read, so that nothing is refused by mistake."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (10**6, 0)


def require_all(result: Deployment) -> None:
    """Raise HardwareError where a network has no result."""
    if result.failed:
        first = result.failed[0]
        raise HardwareError(
            f"{len(result.failed)} of {counted(len(result.proofs), 'network')} could not be proved on the device. "
            f"{first.name}: {'; '.join(first.notes)}"
        )
