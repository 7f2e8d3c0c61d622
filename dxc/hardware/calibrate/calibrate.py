"""A predictor package for ONNX Runtime, of this machine or of a device over SSH.

Networks of dxc.models and random kernels are drawn (dxc.hardware.calibrate.networks). Each is timed twice: plainly,
and with ONNX Runtime's node profiler. The plain time is shared out among the kernels as the profiler found, so
that the kernels of a network add up to the network: timed alone, each kernel would pay for layout changes that
a network pays once (1.5 times the truth for MobileNet-v1). Trees learn time per kernel from that, and their
errors are measured on networks held out of the fit; the last third of the networks is drawn near those
with the largest errors.

    drawn network -> reference -> warm-up -> plain runs -> profiled runs -> plain runs -> reference -> kernels' ms
                                             \\______________________________________/
                                              again, up to ATTEMPTS times, when the runs spread too far

The reference is one network that is always the same: a machine that shares its processor, or gets hot, is faster
in one minute than in another, and the reference's time says by how much. Times are taken to its median.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dxc.bars import Steps
from dxc.config.hardware import Hardware
from dxc.errors import FOLDER_NAME, ConfigError, HardwareError, require_whole
from dxc.files import write_atomically
from dxc.hardware.calibrate.device import Device
from dxc.hardware.calibrate.networks import QUANTISED, RANDOM_KERNELS, Spec, draw, families, onnx_model
from dxc.hardware.measure.ort import node_times, session
from dxc.hardware.predict.features import TARGET, calibrated_ms, derive, work
from dxc.hardware.predict.forest import Forest
from dxc.hardware.predict.kernels import detect, graph_of, predictor_names
from dxc.hardware.spec import device_name
from dxc.text import plural

if TYPE_CHECKING:
    import onnx
    import pandas as pd

log = logging.getLogger(__name__)

# What ONNX Runtime computes together on a CPU (its NCHWc transformer and Gemm activation fusion), in
# nn-Meter's notation. A Flatten costs nothing there; it belongs to what comes before it.
FUSION_RULES = {
    f"BF_{pair}": {"latency": {}, "obey": True}
    for pair in (
        "conv_add", "conv_relu", "dwconv_add", "dwconv_relu", "add_relu", "fc_relu",
        "gap_reshape", "maxpool_reshape", "avgpool_reshape", "concat_reshape", "relu_reshape",
    )
}  # fmt: skip

REFINED = 1 / 3  # of the networks are drawn near those with the largest held-out errors
SECONDS = 0.3  # timed runs of one network, in three parts: plain, profiled, plain
REFERENCE: Spec = {
    "family": "resnet", "in_channels": 5, "size": 64, "kernel": 3, "stride": 2, "padding": 1, "pool": "none",
    "pool_kernel": 3, "pool_stride": 2, "width": 32, "blocks": [2, 2, 2, 2],
}  # fmt: skip
REFERENCE_SECONDS = 0.03
SMALL_MS = 0.6  # of such a network the overhead of its nodes is a tenth and more
MIN_RUNS = 4
WARM_UP_RUNS = 2
MAX_SPREAD = 0.10  # interquartile range of the plain runs over their median
MAX_DISAGREEMENT = 0.2  # of plain and profiled runs; the profiler slows networks under a millisecond by that
ATTEMPTS = 3
FOLDS = 5
MIN_ROWS = 20

# what a package has to show to be good; the shipped one has 0.89 and 0.998
GOOD_WITHIN = 0.8  # of the held-out networks within 10 %
GOOD_RANK = 0.95  # Spearman's rank correlation of predicted and measured
BUSY_NOISY = 0.1  # of the networks could not be timed within MAX_SPREAD; 0.02 to 0.03 on an idle machine
BUSY_SPREAD = 0.15  # of the reference's times; 0.05 on an idle machine

# Gradient boosting (Friedman 2001, doi 10.1214/aos/1013203451): interpolates between measured sizes better
# than nn-Meter's forests, which need some thousand measurements a kernel. Values from a comparison on 500
# networks (forest, extra trees, boosting, Gaussian process): within a percent of each other above this size.
BOOSTING = {
    "n_estimators": 300,
    "max_depth": 6,
    "learning_rate": 0.06,
    "subsample": 0.6,
    "max_features": 0.5,
    "min_samples_leaf": 4,
    "random_state": 0,
}


@dataclass(frozen=True)
class Record:
    """One measured network: latency without the profiler (ms), its spread, and what the profiler saw."""

    spec: Spec
    ms: float
    spread: float
    reference_ms: float
    """Latency of the reference network, before and after this one."""
    kernels: list[tuple[str, list[float] | None, float, int]]
    """Type, nn-Meter's features (None where it has none), profiled ms, and number of ONNX Runtime's nodes."""
    seconds: float
    """What measuring it took."""

    @property
    def valid(self) -> bool:
        return self.spread <= MAX_SPREAD


def calibrate(
    name: str,
    hardware: Hardware,
    *,
    networks: int = 700,
    max_minutes: float = 11.0,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    quantised: bool = False,
    ssh_options: Sequence[str] = (),
) -> Path:
    """Measure and fit; returns the package's folder, hardware.packages_dir/NAME.

    It stops after `networks` or `max_minutes` of measuring, whichever comes first. Measured networks are kept as
    they come: called again after an interruption, it goes on. Raises HardwareError for a name that is taken and
    for hardware that cannot be calibrated, and for an interrupted calibration under other conditions. With
    hardware.host all is measured there, and fitted here.
    """
    packages_dir = Path(hardware.packages_dir)
    folder = _folder(name, packages_dir, overwrite)
    require_whole("networks", networks, at_least=4 * FOLDS)
    require_whole("seed", seed, at_least=0)
    if not isinstance(max_minutes, int | float) or not max_minutes > 0:
        raise ConfigError(f"max_minutes must be a number over 0, not {max_minutes!r}")
    if hardware.provider != "cpu":
        raise HardwareError(
            f"hardware={hardware.name} computes on {hardware.provider}: a predictor is calibrated of a processor, with "
            "hardware.provider=cpu"
        )
    if hardware.remote and not hardware.host:
        raise HardwareError(
            f"hardware={hardware.name} is another machine. Name it, hardware.host=user@address, or go on the device "
            "itself: python calibrate.py hardware=cpu name=NAME; then copy packages/NAME here"
        )
    if hardware.runtime == "torch":
        raise ConfigError(
            "hardware.runtime=torch: a predictor is calibrated with ONNX Runtime, whose profiler times each kernel; "
            "leave hardware.runtime=onnxruntime"
        )
    if not isinstance(quantised, bool):
        raise ConfigError(f"quantised must be true or false, not {quantised!r}")
    measured = _here(hardware) if hardware.host is None else _there(hardware, ssh_options)
    conditions = {**measured.conditions, "seed": seed, "quantised": quantised}
    draft = packages_dir / f".{name}.calibration"
    records = _begin(draft, conditions)
    if records:
        log.info("going on with %d networks measured before", len(records))

    used = sum(record.seconds for record in records)
    with (
        (draft / "measured.jsonl").open("a") as file,
        Steps(
            networks,
            "measuring",
            "network",
            why=f"that fit in {max_minutes:g} {plural(max_minutes, 'minute')}",
            done=len(records),
            shown=progress,
        ) as bar,
    ):
        for spec in _specs(records, networks, seed, max_seconds=max_minutes * 60, quantised=quantised):
            if used > max_minutes * 60 and len(records) >= 4 * FOLDS:
                break
            record = measured.kernels(spec)
            used += record.seconds
            records.append(record)
            file.write(json.dumps(asdict(record)) + "\n")
            file.flush()
            fitting = expected_networks(len(records), used, networks, max_minutes)
            bar.update(f"{spec['family']} {record.ms:.2f} ms", total=fitting)
    log.info("fitting %d networks, about a minute", len(records))
    _write_package(draft, name, at_usual_speed(records), conditions, used)
    replaced = draft.with_suffix(".replaced")
    if folder.exists():
        folder.rename(replaced)
    draft.rename(folder)
    for left in (folder / "measured.jsonl", folder / "conditions.json"):
        left.unlink()
    shutil.rmtree(replaced, ignore_errors=True)
    return folder


class _Measured(NamedTuple):
    """Where networks are measured: under which conditions, and how."""

    conditions: dict[str, Any]
    kernels: Callable[[Spec], Record]


def _here(hardware: Hardware) -> _Measured:
    """On this machine."""
    _bind(hardware.affinity)
    reference = Reference(hardware.threads)
    return _Measured(_conditions(hardware), lambda spec: measure_kernels(spec, hardware.threads, reference))


def _there(hardware: Hardware, ssh_options: Sequence[str]) -> _Measured:
    """On a device over SSH, which says at once what it is."""
    reference = onnx_model(REFERENCE).SerializeToString()
    device = Device(hardware, reference, ssh_options)
    said = device.time(reference, seconds=REFERENCE_SECONDS, reference_seconds=REFERENCE_SECONDS).environment
    conditions = {
        "device": str(said["device"]),
        "runtime": "onnxruntime",
        "runtime_version": str(said["onnxruntime"]),
        "provider": "CPUExecutionProvider",
        "threads": hardware.threads,
        "affinity": list(hardware.affinity) if hardware.affinity else None,
    }
    return _Measured(conditions, lambda spec: _measure_kernels_there(spec, device))


def _measure_kernels_there(spec: Spec, device: Device) -> Record:
    """Like measure_kernels(), on a device."""
    started = time.perf_counter()
    beside: list[float] = []
    model = onnx_model(spec)
    content = model.SerializeToString()

    def timed() -> tuple[list[float], list[tuple[str, str, float]]]:
        found = device.time(content, seconds=SECONDS, reference_seconds=REFERENCE_SECONDS)
        beside.extend(found.reference_ms)
        return found.ms, found.nodes

    ms, spread, nodes = _best(timed)
    kernels = _by_kernel(model, nodes)
    return Record(spec, ms, spread, float(np.median(beside)), kernels, time.perf_counter() - started)


def expected_networks(measured: int, seconds: float, networks: int, max_minutes: float) -> int:
    """How many networks will be measured within max_minutes, at the pace so far; at most `networks`."""
    if not measured or not seconds:
        return networks
    return min(networks, max(4 * FOLDS, measured, round(max_minutes * 60 * measured / seconds)))


class Reference:
    """The network that says how fast the machine is now."""

    def __init__(self, threads: int) -> None:
        self._session = session(onnx_model(REFERENCE).SerializeToString(), threads)
        size = REFERENCE["size"]
        self._feed = {"image": np.zeros((1, REFERENCE["in_channels"], size, size), dtype=np.float32)}

    def times_ms(self) -> list[float]:
        self._session.run(None, self._feed)  # its weights have left the caches
        return _run(self._session, self._feed, REFERENCE_SECONDS)


def measure_kernels(spec: Spec, threads: int, reference: Reference) -> Record:
    """Time one network and its kernels; see the head of this file."""
    started = time.perf_counter()
    beside = reference.times_ms()
    model = onnx_model(spec)
    content = model.SerializeToString()
    dims = model.graph.input[0].type.tensor_type.shape.dim
    image = np.random.default_rng(0).random([dim.dim_value for dim in dims], dtype=np.float32)
    plain = session(content, threads)
    ms, spread, nodes = _best(lambda: _time_nodes(plain, content, image, threads))
    beside += reference.times_ms()
    reference_ms = float(np.median(beside))
    return Record(spec, ms, spread, reference_ms, _by_kernel(model, nodes), time.perf_counter() - started)


def _best(
    timed: Callable[[], tuple[list[float], list[tuple[str, str, float]]]],
) -> tuple[float, float, list[tuple[str, str, float]]]:
    """Median in ms, spread and nodes of the attempt with the least spread; the first that is good ends it.

    Args:
        timed: plain times in ms, and (name, operator, ms) of each node.
    """
    best: tuple[float, float, list[tuple[str, str, float]]] | None = None
    for _ in range(ATTEMPTS):
        times, nodes = timed()
        ms = float(np.median(times))
        spread = float(np.subtract(*np.percentile(times, [75, 25])) / ms)
        if best is None or spread < best[1]:
            best = ms, spread, nodes
        # the second: a burst of others' work fell on one kind of runs only
        if spread <= MAX_SPREAD and abs(sum(node[2] for node in nodes) / ms - 1) <= MAX_DISAGREEMENT:
            best = ms, spread, nodes
            break
    assert best is not None  # ATTEMPTS is not 0
    return best


def _time_nodes(
    plain: Any, content: bytes, image: NDArray[np.float32], threads: int
) -> tuple[list[float], list[tuple[str, str, float]]]:
    """Plain times of a network in ms, and (name, operator, median ms) of each node in order of execution."""
    feed = {"image": image}
    with tempfile.TemporaryDirectory() as folder:
        profiled = session(content, threads, profile=f"{folder}/profile")
        for each in (plain, profiled):
            for _ in range(WARM_UP_RUNS):
                each.run(None, feed)
        times = _run(plain, feed, SECONDS / 3)
        runs = len(_run(profiled, feed, SECONDS / 3)) + WARM_UP_RUNS
        times += _run(plain, feed, SECONDS / 3)
        nodes = node_times(Path(profiled.end_profiling()), runs)
    return times, [(node.name, node.op, float(np.median(node.ms[WARM_UP_RUNS:]))) for node in nodes]


def _run(session: Any, feed: dict[str, Any], seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_RUNS or time.perf_counter() < end:
        before = time.perf_counter()
        session.run(None, feed)
        times.append((time.perf_counter() - before) * 1000)
    return times


def _by_kernel(
    model: onnx.ModelProto, nodes: Sequence[tuple[str, str, float]]
) -> list[tuple[str, list[float] | None, float, int]]:
    """Profiled nodes of ONNX Runtime gathered by nn-Meter kernel; see Record.kernels.

    ONNX Runtime calls a fused node after one of its outputs (t7_nchwc) or after its first node (fused n7).
    A change of layout has no name: one to the blocked layout belongs to what comes next, one from it to what
    came before.
    """
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "fusion_rules.json"
        rules.write_text(json.dumps(FUSION_RULES))
        kernels = detect(graph_of(model, "calibration network"), rules)
    owner = {int(node.rsplit(":n", 1)[1]): i for i, kernel in enumerate(kernels) for node in kernel.nodes}
    taken, counts = [0.0] * len(kernels), [0] * len(kernels)
    last, waiting, waiting_nodes = 0, 0.0, 0
    for name, op, node_ms in nodes:
        found = re.search(r"(?:^|\s)[tn](\d+)(?:_|$)", name)
        if found and int(found[1]) in owner:
            last = owner[int(found[1])]
            taken[last] += waiting + node_ms
            counts[last] += waiting_nodes + 1
            waiting, waiting_nodes = 0.0, 0
        elif op == "ReorderInput":
            waiting += node_ms
            waiting_nodes += 1
        else:
            taken[last] += node_ms
            counts[last] += 1
    return [
        (kernel.op, None if kernel.features is None else list(kernel.features), spent, count)
        for kernel, spent, count in zip(kernels, taken, counts, strict=True)
        if spent > 0  # ONNX Runtime merges equal nodes: the second is free
    ]


def _specs(
    records: list[Record], networks: int, seed: int, max_seconds: float, quantised: bool = False
) -> Iterator[Spec]:
    """What to measure next, given `records` (which the caller appends to): the same after a resume. quantised: every
    other network is in static int8."""
    weights = families()
    shares = np.array(list(weights.values())) / sum(weights.values())
    worst: list[Record] = []
    while (number := len(records)) < networks:
        rng = np.random.default_rng([seed, number])
        spent = np.cumsum([0.0, *(record.seconds for record in records)])
        first = min(
            round(networks * (1 - REFINED)), int(np.argmax(spent > max_seconds * (1 - REFINED))) or networks
        )
        if number >= first:
            worst = worst or _worst(records[:first])
        if number < first or not worst:
            spec = draw(list(weights)[int(rng.choice(len(weights), p=shares))], rng)
            yield {**spec, QUANTISED: True} if quantised and number % 2 else spec
            continue
        bad = worst[int(rng.integers(len(worst)))].spec
        fresh = draw(bad["family"], rng)
        near = {key: bad[key] if rng.random() < 0.7 else value for key, value in fresh.items()}
        yield {**near, QUANTISED: True} if bad.get(QUANTISED) else near


def _worst(records: list[Record]) -> list[Record]:
    """The tenth of each family's networks with the largest held-out errors.

    Not of the random kernels, whose parts fit each other only, and none so small that its session is what it costs.
    """
    valid = at_usual_speed([record for record in records if record.valid])
    errors = abs(held_out(valid)[0] / [record.ms for record in valid] - 1)
    worst = []
    for family in [name for name in families() if name != RANDOM_KERNELS]:
        own = [i for i in np.argsort(-errors) if valid[i].spec["family"] == family and valid[i].ms > SMALL_MS]
        worst += [valid[i] for i in own[: max(3, len(own) // 10)]]
    return worst


def at_usual_speed(records: Sequence[Record]) -> list[Record]:
    """The records with times as they would be in a minute in which the reference takes its median."""
    usual_ms = float(np.median([record.reference_ms for record in records]))
    return [
        replace(
            record,
            ms=record.ms * (speed := usual_ms / record.reference_ms),
            kernels=[(op, features, ms * speed, nodes) for op, features, ms, nodes in record.kernels],
        )
        for record in records
    ]


def node_overhead_ms(records: Sequence[Record]) -> float:
    """What a node costs in a plain run beyond what the profiler says, usually less than nothing: it is slower itself.

    Median over the networks that are small enough to show it; 0 where there are too few.
    """
    each = [
        (record.ms - sum(ms for _, _, ms, _ in record.kernels)) / sum(nodes for *_, nodes in record.kernels)
        for record in records
        if record.ms < SMALL_MS
    ]
    return float(np.median(each)) if len(each) >= FOLDS else 0.0


def share_out(record: Record, overhead_ms: float) -> list[tuple[str, list[float], float]]:
    """(type, features, ms) of the kernels that nn-Meter has features for: all kernels add up to the plain run."""
    spent = [max(ms + overhead_ms * nodes, ms / 10) for _, _, ms, nodes in record.kernels]
    scale = record.ms / sum(spent)
    return [
        (op, features, ms * scale)
        for (op, features, _, _), ms in zip(record.kernels, spent, strict=True)
        if features is not None
    ]


def rows_of(records: Sequence[Record]) -> dict[str, list[tuple[int, list[float], float]]]:
    """Training rows by predictor name: (number of the network, features, ms)."""
    rows: dict[str, list[tuple[int, list[float], float]]] = defaultdict(list)
    overhead_ms = node_overhead_ms(records)
    for number, record in enumerate(records):
        for op, features, ms in share_out(record, overhead_ms):
            rows[predictor_names(op)[-1]].append((number, features, ms))
    return rows


def held_out(records: Sequence[Record]) -> tuple[NDArray[np.float64], dict[str, dict[str, float]]]:
    """Latency of each network in ms as predicted by trees that never saw it (5 folds of whole networks), and
    the errors of each kernel type's predictor."""
    from sklearn.model_selection import GroupKFold

    totals = np.zeros(len(records))
    kernels = {}
    for name, rows in rows_of(records).items():
        numbers, features, ms = _arrays(rows)
        predicted = ms.copy()
        if enough(rows):
            for train, test in GroupKFold(FOLDS).split(features, groups=numbers):
                model = _fit(name, features[train], ms[train])
                predicted[test] = calibrated_ms(model, name, features[test])
            kernels[name] = {**errors(predicted, ms), "share_of_time": float(ms.sum())}
        np.add.at(totals, numbers, predicted)
    time_ms = sum(record.ms for record in records)
    for each in kernels.values():
        each["share_of_time"] /= time_ms
    return totals, kernels


def enough(rows: Sequence[tuple[int, list[float], float]]) -> bool:
    """Whether a kernel was met often enough, in networks enough, to learn from."""
    return len(rows) >= MIN_ROWS and len({number for number, *_ in rows}) >= 2 * FOLDS


def errors(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> dict[str, float]:
    """n, shares within +-5 and +-10 % (nn-Meter's measure), and mean absolute error relative to the measured."""
    relative = np.abs(np.asarray(predicted) / np.asarray(measured) - 1)
    return {
        "n": len(relative),
        "within_5_percent": float(np.mean(relative <= 0.05)),
        "within_10_percent": float(np.mean(relative <= 0.10)),
        "mape": float(relative.mean()),
    }


def relative_spread(times: Sequence[float]) -> float:
    """Interquartile range over the median."""
    upper, middle, lower = np.percentile(times, [75, 50, 25])
    return float((upper - lower) / middle)


def rank_correlation(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> float:
    """Spearman's."""
    from scipy.stats import spearmanr

    return float(spearmanr(predicted, measured).statistic)


def verdict(about: Mapping[str, Any]) -> str:
    """What a package is good enough for, with the numbers that say so; or that the machine was busy.

    about: its package.json. The held-out check decides first: a calibration that was disturbed and still predicts well
    is good.
    """
    check = about["held_out"]["all"]["networks"]
    within, rank = check["within_10_percent"], about["rank_correlation"]
    noisy = about["networks_too_noisy"] / (about["networks"] + about["networks_too_noisy"])
    numbers = (
        f"of {check['n']} networks held out of the fit, {within:.0%} within 10 %, mean error {check['mape']:.1%}, rank "
        f"correlation (Spearman) {rank:.3f}; {noisy:.0%} of the networks too noisy to use, speed of the machine "
        f"spread by {about['reference_spread']:.0%}"
    )
    if within >= GOOD_WITHIN and rank >= GOOD_RANK:
        said = "good enough to compare networks and to hold a limit on latency to 10 %"
    elif noisy > BUSY_NOISY or about["reference_spread"] > BUSY_SPREAD:
        said = "the machine was busy: stop what else runs on it and do it again with overwrite=true"
    elif rank >= GOOD_RANK:
        said = (
            "good enough to rank networks in a search; leave a limit on latency a margin of "
            f"{max(2 * check['mape'], 0.1):.0%}, or measure longer (max_minutes, overwrite=true)"
        )
    else:
        said = "not good enough to rank networks: measure longer (max_minutes, networks, overwrite=true)"
    return f"{said} ({numbers})"


def _fit(name: str, features: NDArray[np.float64], ms: NDArray[np.float64]) -> Any:
    from sklearn.ensemble import GradientBoostingRegressor

    return GradientBoostingRegressor(**BOOSTING).fit(
        derive(name, features), np.log(ms / work(name, features))
    )


def _arrays(
    rows: Sequence[tuple[int, list[float], float]],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    numbers, features, ms = zip(*rows, strict=True)
    return np.array(numbers), np.array(features, dtype=float), np.array(ms)


def _write_package(
    folder: Path, name: str, records: Sequence[Record], conditions: dict[str, Any], seconds: float
) -> None:
    """A package in nn-Meter's layout, with its training table and what it was measured on."""
    import pandas as pd

    valid = [record for record in records if record.valid]
    if len(valid) < FOLDS:
        raise HardwareError(
            f"only {len(valid)} of {len(records)} networks could be timed within {MAX_SPREAD:.0%}: this machine "
            "is too busy. Stop what else runs on it and start the same command again."
        )
    started = time.perf_counter()
    overhead_ms = node_overhead_ms(valid)
    totals, kernels = held_out(valid)
    measured = np.array([record.ms for record in valid])
    family_of = np.array([_kind(record.spec) for record in valid])
    covered = {kernel: rows for kernel, rows in rows_of(valid).items() if enough(rows)}
    if not covered:
        raise HardwareError(
            f"{len(valid)} of {len(records)} networks could be timed well enough, and no kernel occurs in enough of "
            "them: measure more networks (networks=, max_minutes=), on a machine that does nothing else."
        )
    for kernel, rows in covered.items():  # a network with another kernel says that it is not covered
        _, features, ms = _arrays(rows)
        Forest.from_sklearn(_fit(kernel, features, ms)).save(folder / f"{kernel}.npz")
    (folder / "fusion_rules.json").write_text(json.dumps(FUSION_RULES, indent=1) + "\n")
    table: pd.DataFrame = pd.DataFrame(
        [
            (number, record.spec["family"], op, features, ms)
            for number, record in enumerate(valid)
            for op, features, ms in share_out(record, overhead_ms)
        ],
        columns=["network", "family", "op", "features", "ms"],
    )
    table.to_parquet(folder / "kernels.parquet", index=False)
    pd.DataFrame(
        {
            "spec": [json.dumps(record.spec) for record in valid],
            "ms": measured,
            "held_out_ms": totals,
            "spread": [record.spread for record in valid],
            "reference_ms": [record.reference_ms for record in valid],
        }
    ).to_parquet(folder / "networks.parquet", index=False)
    about = {
        "name": name,
        "target": TARGET,
        **conditions,
        "date": date.today().isoformat(),
        "networks": len(valid),
        "networks_too_noisy": len(records) - len(valid),
        "node_overhead_ms": overhead_ms,
        "minutes_measuring": round(seconds / 60, 1),
        "minutes_fitting": round((time.perf_counter() - started) / 60, 1),
        "reference_spread": relative_spread([record.reference_ms for record in records]),
        "rank_correlation": rank_correlation(totals, measured),
        "held_out": {
            "all": {"networks": errors(totals, measured)},
            "networks": {
                family: errors(totals[family_of == family], measured[family_of == family])
                for family in _kinds()
                if (family_of == family).any()
            },
            "kernels": kernels,
        },
    }
    write_atomically(folder / "package.json", json.dumps(about, indent=1) + "\n")


def _kind(spec: Spec) -> str:
    """What errors are listed by: the family, in float32 or in static int8."""
    return f"{spec['family']}{', int8' * bool(spec.get(QUANTISED))}"


def _kinds() -> list[str]:
    return [
        _kind({"family": name, QUANTISED: quantised}) for quantised in (False, True) for name in families()
    ]


def _bind(affinity: Sequence[int] | None) -> None:
    if affinity:
        try:
            os.sched_setaffinity(0, affinity)
        except (OSError, ValueError, TypeError) as error:
            raise HardwareError(
                f"hardware.affinity={list(affinity)}: {error}; this process may use the cores "
                f"{sorted(os.sched_getaffinity(0))}"
            ) from error


def _conditions(hardware: Hardware) -> dict[str, Any]:
    import onnxruntime

    return {
        "device": device_name(),
        "runtime": "onnxruntime",
        "runtime_version": onnxruntime.__version__,
        "provider": "CPUExecutionProvider",
        "threads": hardware.threads,
        "affinity": list(hardware.affinity) if hardware.affinity else None,
    }


def _folder(name: str, packages_dir: Path, overwrite: bool) -> Path:
    from dxc.hardware.predict.packages import PUBLISHED

    if not FOLDER_NAME.fullmatch(str(name)):
        raise HardwareError(f"name={name} names a folder: use letters, digits, '.', '_' and '-'")
    if name in PUBLISHED:
        raise HardwareError(f"name={name} is a published package; choose another name")
    folder = packages_dir / name
    if folder.exists() and not overwrite:
        raise HardwareError(
            f"{folder} exists; choose another name=NAME, or measure again with overwrite=true"
        )
    return folder


def _begin(draft: Path, conditions: dict[str, Any]) -> list[Record]:
    """Open or reopen the folder of a calibration in progress; what was measured before."""
    draft.mkdir(parents=True, exist_ok=True)
    noted, measured = draft / "conditions.json", draft / "measured.jsonl"
    if noted.exists():
        before = json.loads(noted.read_text())
        if differing := {
            key: (before.get(key), value) for key, value in conditions.items() if before.get(key) != value
        }:
            listing = "\n".join(f"  {key}: {old} then, {new} now" for key, (old, new) in differing.items())
            raise HardwareError(
                f"{draft} holds an interrupted calibration under other conditions:\n{listing}\n"
                "Go on under the same ones, choose another name=NAME, or remove that folder."
            )
    else:
        write_atomically(noted, json.dumps(conditions, indent=1) + "\n")
    records = []
    if measured.exists():
        whole = []
        for line in measured.read_text().splitlines():
            try:
                records.append(Record(**json.loads(line)))
            except (ValueError, TypeError):
                break  # the line that a kill cut short
            whole.append(line + "\n")
        write_atomically(measured, "".join(whole))
    return records
