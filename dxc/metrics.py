"""Every metric a run can carry, declared once: the table METRICS.

A new metric is a new row. Tables, figures, pages, limits, MLflow's saved view and the check of what may be compared
read that row.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Point = tuple[str, float, int]
"""One point of a curve: name, value, step."""

STATED = ("predicted", "measured")
"""Origins that a title names: such a value belongs to one machine, and the two kinds are never mixed."""
ORIGIN_TAGS = {
    "trained": "dxc.source",
    "mapped": "dxc.mapped",
    "predicted": "dxc.predicted_for",
    "measured": "dxc.measured_on",
}
"""Tag of a run that names what its values of an origin are of: the chips, the mapped area, or the machine."""
SYMBOLS = {"1e6 bytes": "MB", "count": "", "ratio": "", "currency": ""}
"""Units that axes and headings write in another way."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One row of the table.

    A metric may have parts, named after a slash: `latency_ms/NAME` is of one predictor, `efficiency_ms/batchN` of one
    batch size. The row of the part before the slash declares them.

    Attributes:
        unit: of its values.
        maximise: True where more is better.
        meaning: what the value is, in a few words.
        title: its name in headings, axes and lines, without the origin; '' for a metric that dxc does not declare,
            which keeps the name its run has.
        in_comparison: whether the table of predicted against measured costs shows it.
        format: how one value is written, in the terminal and on the page.
        table_format: how it is written in tables of designs.
        origin: how it is known. predicted: by predictors, of the machine in tag dxc.predicted_for; measured: on the
            machine in tag dxc.measured_on; counted: from the network alone; trained: what training gave;
            mapped: a map of the area in tag dxc.mapped, compared with its true crossings.
        known_before_training: whether a search knows it of every network before it trains one.
        may_be_limited: whether hardware.limits may name it; search.limits may if it is known before training too.
        spread: the metric that holds its standard deviation within one run.
        same_in_repeats: True where repeats of a design have the same value, so that they say nothing of its spread.
        may_be_negative: whether values below 0 make sense.
        comparable_by: tags and params of runs that must be equal for two values to be compared, each in words.
        verdicts: tags of runs that say whether it was measured and counts: VALID, NOT_METERED, or INVALID and why.
        in_view: whether MLflow's saved view of a new study has a column for it.
    """

    unit: str
    maximise: bool
    meaning: str
    title: str = ""
    in_comparison: bool = False
    format: str = ".4f"
    table_format: str = ".4g"
    origin: str = ""
    known_before_training: bool = False
    may_be_limited: bool = False
    spread: str | None = None
    same_in_repeats: bool = False
    may_be_negative: bool = False
    comparable_by: Mapping[str, str] = field(default_factory=dict, hash=False)
    verdicts: tuple[str, ...] = ()
    in_view: bool = False

    @property
    def symbol(self) -> str:
        """The unit as axes and headings write it: 'MB' of '1e6 bytes', '' of 'count'."""
        return SYMBOLS.get(self.unit, self.unit)

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value there can be: a fraction ends at 1, and few declared metrics are below 0."""
        if not self.title:
            return -math.inf, math.inf
        greatest = 1 if self.unit == "fraction" else math.inf
        return -greatest if self.may_be_negative else 0, greatest

    def brief(self, value: float) -> str:
        """A value in a line or a narrow table: two decimals, a count in full, two digits of what is less than 0.01."""
        if self.unit == "count":
            return f"{value:,.0f}"
        return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.2f}"

    def said(self, value: float) -> str:
        """A value with what it is: '5.20 ms predicted', '1.20 MB', '11,183,810 parameters'."""
        origin = f" {self.origin}" if self.origin in STATED else ""
        return f"{self.brief(value)} {self.symbol or self.title}{origin}"


# judged by the same chips, and by networks that had not seen them in the same sense
JUDGED = {"dxc.data": "chips", "data.split": "how chips were split into training and validation"}
# by the same predictors: their names, and what they say
PREDICTED = {
    "dxc.predictors": "the predictors of latency",
    "dxc.packages": "what was in the predictors' packages",
}
MEASURED = {
    "dxc.measured_on": "the machine they were measured on",  # device, runtime, provider, threads
    "hardware.affinity": "the cores they were measured on",
}
ENERGY_METER = "dxc.energy_meter"
LATENCY_VERDICT, ENERGY_VERDICT = "dxc.measurement", "dxc.energy"
VALID, NOT_METERED, INVALID = "valid", "not metered", "invalid: "
"""What tags of Metric.verdicts hold; the last with the reason after it."""
VERDICTS = {LATENCY_VERDICT: "latency", ENERGY_VERDICT: "energy"}
"""The tags, and what each is of."""
INVALID_RUNS = "{}.invalid"
"""Column of a table of designs: how many of a design's runs a tag calls invalid."""
METERED = {
    **MEASURED,
    ENERGY_METER: "the meter of energy",  # one in the supply sees more than a processor's own
}
MEASURED_IN_BATCHES = {**MEASURED, "hardware.batches": "the batch sizes that were measured"}
SCHEDULED = {"dxc.scheduled_on": "the device they were scheduled on"}  # with torch, CUDA and precision
MAPPED = {
    "dxc.mapped": "the rasters that were mapped",
    "dxc.map_mode": "the way in which they were mapped",
    "dxc.map_fold": "the folds whose networks mapped them",
    "dxc.map_roads": "the roads along which they were mapped",
}
MAP_FIGURES = {
    "recall": "map_recall",
    "precision": "map_precision",
    "false_alarms_per_km2": "false_alarms_per_km2",
    "false_alarms_per_road_km": "false_alarms_per_road_km",
}
"""Figures of a map where a match may be so far apart, and the metric that each is at 15 m."""
TRAINED_ON = {"device": "the machine they were trained on", "dxc.engine": "the engine that trained them"}
SCALED_ON = {
    "dxc.measured_on": "the devices they were trained on",
    "batch": "the batch",
    "size": "the size of images",
}
UNDECLARED = {"hardware": "hardware", "dxc.data": "chips"}
"""What a metric that dxc does not declare is compared by: it may depend on either."""

METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        unit="fraction",
        maximise=True,
        meaning="held-out images, last epoch; mean if several folds",
        title="accuracy",
        table_format=",.4f",
        origin="trained",
        spread="accuracy_std",
        comparable_by=JUDGED,
        in_view=True,
    ),
    "accuracy_std": Metric(
        unit="fraction",
        maximise=False,
        meaning="sample standard deviation over folds",
        title="spread of accuracy",
        origin="trained",
        comparable_by=JUDGED,
    ),
    "accuracy_drop": Metric(
        unit="fraction",
        maximise=False,
        meaning="accuracy of the same networks in float32 less that of the quantised files",
        title="loss by quantising",
        table_format=",.4f",
        origin="trained",
        may_be_negative=True,
        comparable_by=JUDGED,
    ),
    "average_precision": Metric(
        unit="fraction",
        maximise=True,
        meaning="predictions for all held-out images, pooled",
        title="average precision",
        origin="trained",
        comparable_by=JUDGED,
    ),
    "f1": Metric(
        unit="fraction",
        maximise=True,
        meaning="predictions for all held-out images, pooled; macro of more than two classes",
        title="F1",
        origin="trained",
        comparable_by=JUDGED,
    ),
    "auroc": Metric(
        unit="fraction",
        maximise=True,
        meaning="predictions for all held-out images, pooled; of more than two classes macro, one against the rest",
        title="AUROC",
        origin="trained",
        comparable_by=JUDGED,
    ),
    "box_ap50": Metric(
        unit="fraction",
        maximise=True,
        meaning="boxes, average precision at IoU 0.5 (COCO), pooled",
        title="box AP at IoU 0.5",
        origin="trained",
        comparable_by=JUDGED,
    ),
    "box_ap": Metric(
        unit="fraction",
        maximise=True,
        meaning="boxes, mean average precision at IoU 0.5 to 0.95 (COCO), pooled",
        title="box AP",
        origin="trained",
        comparable_by=JUDGED,
    ),
    "mean_iou": Metric(
        unit="fraction",
        maximise=True,
        meaning="predicted against true box, over the images with a crossing",
        title="mean IoU",
        origin="trained",
        comparable_by=JUDGED,
    ),
    "recall_at_precision": Metric(
        unit="fraction",
        maximise=True,
        meaning="greatest recall at a precision of task.min_precision (0.9)",
        title="recall at fixed precision",
        origin="trained",
        comparable_by={**JUDGED, "task.min_precision": "the precision at which recall is read"},
    ),
    "calibration_error": Metric(
        unit="fraction",
        maximise=False,
        meaning="expected |probability - share of crossings|, held-out images",
        title="calibration error",
        origin="trained",
        comparable_by=JUDGED,
    ),
    "map_recall": Metric(
        unit="fraction",
        maximise=True,
        meaning="true crossings found on the map, within 15 m, one to one",
        title="map recall",
        origin="mapped",
        comparable_by=MAPPED,
    ),
    "map_recall_at_false_alarms": Metric(
        unit="fraction",
        maximise=True,
        meaning="greatest recall of the map with at most alarms_per_km2 (1) false alarms a km2, within 15 m",
        title="map recall at fixed false alarms",
        origin="mapped",
        comparable_by={**MAPPED, "alarms_per_km2": "the false alarms at which recall is read"},
    ),
    "map_precision": Metric(
        unit="fraction",
        maximise=True,
        meaning="points of the map that are crossings, within 15 m, one to one",
        title="map precision",
        origin="mapped",
        comparable_by=MAPPED,
    ),
    "map_average_precision": Metric(
        unit="fraction",
        maximise=True,
        meaning="precision of the map's points over all thresholds",
        title="average precision of the map",
        origin="mapped",
        comparable_by=MAPPED,
    ),
    "false_alarms_per_km2": Metric(
        unit="1/km2",
        maximise=False,
        meaning="points of the map that are no crossing",
        title="false alarms",
        table_format=",.2f",
        origin="mapped",
        comparable_by=MAPPED,
    ),
    "false_alarms_per_road_km": Metric(
        unit="1/km",
        maximise=False,
        meaning="points of the map that are no crossing, by length of road",
        title="false alarms on roads",
        table_format=",.2f",
        origin="mapped",
        comparable_by=MAPPED,
    ),
    "flow_passes": Metric(
        unit="fraction",
        maximise=True,
        meaning="true crossings where the flow of 1 ha passes after breaching",
        title="crossings that water passes",
        origin="mapped",
        comparable_by=MAPPED,
    ),
    "ponded_km2": Metric(
        unit="km2",
        maximise=False,
        meaning="ground under water that cannot run off after breaching",
        title="ponded area",
        origin="mapped",
        comparable_by=MAPPED,
    ),
    "cells_changed": Metric(
        unit="count",
        maximise=False,
        meaning="cells of the elevation model that breach lines lower",
        title="cells changed",
        format=",.0f",
        table_format=",.0f",
        origin="mapped",
        comparable_by=MAPPED,
    ),
    "seconds_per_km2": Metric(
        unit="s/km2",
        maximise=False,
        meaning="wall time from the start to the merged points; breach lines, files and the evaluation come after",
        title="mapping time",
        table_format=",.2f",
        origin="measured",
        comparable_by={**MEASURED, **MAPPED},
    ),
    "latency_ms": Metric(
        unit="ms",
        maximise=False,
        meaning="mean over the hardware's nn-Meter predictors",
        title="latency",
        in_comparison=True,
        table_format=",.2f",
        origin="predicted",
        known_before_training=True,
        may_be_limited=True,
        spread="latency_std_ms",
        same_in_repeats=True,
        comparable_by=PREDICTED,
        in_view=True,
    ),
    "latency_std_ms": Metric(
        unit="ms",
        maximise=False,
        meaning="sample standard deviation over the predictors",
        title="spread of latency",
        origin="predicted",
        known_before_training=True,
        comparable_by=PREDICTED,
    ),
    "uncovered_macs_share": Metric(
        unit="fraction",
        maximise=False,
        meaning="MACs of kernels without a predictor, in no latency",
        title="MACs not covered",
        origin="counted",
        known_before_training=True,
        comparable_by=PREDICTED,
    ),
    "measured_latency_ms": Metric(
        unit="ms",
        maximise=False,
        meaning="median",
        title="latency",
        in_comparison=True,
        origin="measured",
        may_be_limited=True,
        comparable_by=MEASURED,
        verdicts=(LATENCY_VERDICT,),
        in_view=True,
    ),
    "measured_latency_p95_ms": Metric(
        unit="ms",
        maximise=False,
        meaning="95th percentile",
        title="latency, 95 %",
        origin="measured",
        comparable_by=MEASURED,
        verdicts=(LATENCY_VERDICT,),
    ),
    "device_accuracy": Metric(
        unit="fraction",
        maximise=True,
        meaning="of the exported file over the whole test set, computed on the device",
        title="accuracy",
        table_format=",.4f",
        origin="measured",
        comparable_by={**JUDGED, **MEASURED},
    ),
    "efficiency_ms": Metric(
        unit="ms",
        maximise=False,
        meaning="latency / batch, least over the batch sizes",
        title="latency / batch",
        table_format=",.3f",
        origin="measured",
        may_be_limited=True,
        comparable_by=MEASURED_IN_BATCHES,
    ),
    "optimum_batch": Metric(
        unit="count",
        maximise=False,
        meaning="images in the batch with that least; fewer wait less",
        title="optimum batch",
        format=".0f",
        table_format=",.0f",
        origin="measured",
        comparable_by=MEASURED_IN_BATCHES,
    ),
    "sequential_latency_ms": Metric(
        unit="ms",
        maximise=False,
        meaning="operators one after the other, one CUDA graph, batch 1",
        title="latency, sequential",
        origin="measured",
        comparable_by=SCHEDULED,
    ),
    "scheduled_latency_ms": Metric(
        unit="ms",
        maximise=False,
        meaning="operators side by side as IOS finds, one CUDA graph, batch 1",
        title="latency, scheduled",
        origin="measured",
        comparable_by=SCHEDULED,
    ),
    "onnx_mb": Metric(
        unit="1e6 bytes",
        maximise=False,
        meaning="size of the exported file",
        title="ONNX file",
        in_comparison=True,
        table_format=",.2f",
        origin="counted",
        known_before_training=True,
        may_be_limited=True,
        in_view=True,
    ),
    "peak_memory_mb": Metric(
        unit="1e6 bytes",
        maximise=False,
        meaning="peak of the inference process less its baseline",
        title="peak memory",
        in_comparison=True,
        origin="measured",
        may_be_limited=True,
        comparable_by=MEASURED,
    ),
    "energy_mj": Metric(
        unit="mJ",
        maximise=False,
        meaning="an image, with what the device takes when idle",
        title="energy",
        origin="measured",
        comparable_by=METERED,
        verdicts=(ENERGY_VERDICT,),
    ),
    "net_energy_mj": Metric(
        unit="mJ",
        maximise=False,
        meaning="an image, less what the device takes when idle",
        title="net energy",
        origin="measured",
        may_be_negative=True,  # where it is small beside the error of the meter
        comparable_by=METERED,
        verdicts=(ENERGY_VERDICT,),
    ),
    "max_power_w": Metric(
        unit="W",
        maximise=False,
        meaning="the greatest sample of the meter under load",
        title="maximum power",
        table_format=",.2f",
        origin="measured",
        comparable_by=METERED,
        verdicts=(ENERGY_VERDICT,),
    ),
    "fom": Metric(
        unit="%/(ms mJ)",
        maximise=True,
        meaning="accuracy in % / (latency x energy), all three of one run on the device",
        title="figure of merit",
        origin="measured",
        comparable_by={**JUDGED, **METERED},
        verdicts=(LATENCY_VERDICT, ENERGY_VERDICT),
    ),
    "params": Metric(
        unit="count",
        maximise=False,
        meaning="trainable parameters",
        title="parameters",
        format=",.0f",
        table_format=",.0f",
        origin="counted",
        known_before_training=True,
        may_be_limited=True,
    ),
    "macs": Metric(
        unit="count",
        maximise=False,
        meaning="multiply-accumulates an image",
        title="MACs",
        in_comparison=True,
        format=",.0f",
        table_format=",.0f",
        origin="counted",
        known_before_training=True,
        may_be_limited=True,
    ),
    "fold_score": Metric(
        unit="fraction",
        maximise=True,
        meaning="of the metric that the key `score` names; mean if several folds",
        title="tuner's score",
        origin="trained",
        comparable_by=JUDGED,
    ),
    "fit_seconds": Metric(
        unit="s",
        maximise=False,
        meaning="wall time of training, all folds; those side by side share it",
        title="training time",
        format=".0f",
        origin="trained",
        comparable_by={**TRAINED_ON, "dxc.data": JUDGED["dxc.data"]},
        in_view=True,  # MLflow's own duration counts the time that a trial waits
    ),
    "images_per_second": Metric(
        unit="1/s",
        maximise=True,
        meaning="images a second while training",
        title="training speed",
        format=".0f",
        origin="trained",
        comparable_by=TRAINED_ON,
    ),
    # of scale.py: one run on several devices
    "speedup": Metric(
        unit="ratio",
        maximise=True,
        meaning="images a second relative to one device",
        title="speed-up",
        format=".2f",
        table_format=".2f",
        origin="trained",
        comparable_by=SCALED_ON,
    ),
    "scaling_efficiency": Metric(
        unit="fraction",
        maximise=True,
        meaning="speed-up / devices",
        title="efficiency",
        format=".3f",
        table_format=".3f",
        origin="trained",
        comparable_by=SCALED_ON,
    ),
    "added_speedup": Metric(
        unit="ratio",
        maximise=True,
        meaning="speed-up that each device more gave since the next smaller run",
        title="speed-up by each added device",
        format=".2f",
        table_format=".2f",
        origin="trained",
        may_be_negative=True,
        comparable_by=SCALED_ON,
    ),
    "communication_share": Metric(
        unit="fraction",
        maximise=False,
        meaning="of a step: with the synchronisation of gradients less without",
        title="communication",
        format=".3f",
        table_format=".3f",
        origin="trained",
        comparable_by=SCALED_ON,
    ),
    "loader_share": Metric(
        unit="fraction",
        maximise=False,
        meaning="of a step: the wait for images",
        title="wait for images",
        format=".3f",
        table_format=".3f",
        origin="trained",
        comparable_by=SCALED_ON,
    ),
    "roofline_share": Metric(
        unit="fraction",
        maximise=True,
        meaning="of the speed that the arithmetic and the memory of the devices allow: least time of a step / its time",
        title="share of the roofline",
        format=".3f",
        table_format=".3f",
        origin="trained",
        comparable_by=SCALED_ON,
    ),
    "seconds_to_accuracy": Metric(
        unit="s",
        maximise=False,
        meaning="training time until the accuracy of `until`, without validation",
        title="time to accuracy",
        format=".0f",
        table_format=",.0f",
        origin="trained",
        comparable_by=SCALED_ON,
    ),
    "accuracy_speedup": Metric(
        unit="ratio",
        maximise=True,
        meaning="time to accuracy of one device / this one",
        title="speed-up to accuracy",
        format=".2f",
        table_format=".2f",
        origin="trained",
        comparable_by=SCALED_ON,
    ),
    "device_hours": Metric(
        unit="h",
        maximise=False,
        meaning="devices x wall time of the timed part",
        title="device-hours",
        format=".3f",
        origin="trained",
        comparable_by=SCALED_ON,
    ),
    "price": Metric(
        unit="currency",
        maximise=False,
        meaning="device-hours x price_per_gpu_hour",
        title="price",
        format=".2f",
        origin="trained",
        comparable_by=SCALED_ON,
    ),
    "price_per_point": Metric(
        unit="currency",
        maximise=False,
        meaning="price / accuracy in percentage points",
        title="price a point of accuracy",
        format=".3f",
        origin="trained",
        comparable_by=SCALED_ON,
    ),
}


def named_origins(
    tags: Iterable[Mapping[str, str]], objectives: Mapping[str, Metric]
) -> dict[str, dict[str, int]]:
    """{origin: {chips or machine: number of runs}} of objectives, the most frequent first; '' where a run does not say.

    Chips are left out where no run names them.

    Args:
        tags: of each run.
        objectives: metrics that the runs are compared by.
    """
    runs = list(tags)
    found: dict[str, dict[str, int]] = {}
    for origin, tag in ORIGIN_TAGS.items():
        if not any(each.origin == origin for each in objectives.values()):
            continue
        counts = Counter(each.get(tag) or "" for each in runs)
        if origin in STATED or any(counts):
            found[origin] = dict(counts.most_common())
    return found


def metric_of(name: str) -> Metric:
    """The row that declares a metric: that of `latency_ms` for `latency_ms/NAME`.

    Raises KeyError for a metric that is not declared: a bug, not a user's mistake.
    """
    return METRICS[name.split("/")[0]]


def is_declared(name: str) -> bool:
    """Whether a row declares this metric, or the one it is a part of."""
    return name.split("/")[0] in METRICS


def undeclared(name: str, *, maximise: bool) -> Metric:
    """A row for a metric of which only the name and the direction are known.

    Args:
        name: as runs have it.
        maximise: True where more is better.
    """
    return Metric(unit="", maximise=maximise, meaning=name, format=".4g", comparable_by=UNDECLARED)


def why_invalid(said: object) -> str:
    """Why a figure that was measured does not count; '' where it counts, or was not measured.

    Args:
        said: what a run's tag of Metric.verdicts holds; anything else where there is none.
    """
    return said.removeprefix(INVALID) if isinstance(said, str) and said.startswith(INVALID) else ""


def is_of_one_fold(name: str) -> bool:
    """Whether runs have this name for a curve of one fold, such as `val_accuracy.fold1`, and not for a metric.

    MLflow sorts charts by name, and puts those with a slash in their name first: so folds come after the metrics.
    """
    return re.match(r"(train|val)_\w+\.", name) is not None


def is_fold_accuracy(name: str) -> bool:
    """Whether runs have this name for the accuracy of one fold after its last epoch: `val_accuracy.fold1`."""
    return name.startswith("val_accuracy.")


def figure_of_merit(accuracy: float, latency_ms: float, energy_mj: float) -> float:
    """Metric fom: accuracy in % / (latency x energy). All three are of one run on the device.

    Args:
        accuracy: a fraction.
        latency_ms: of an image.
        energy_mj: gross energy of an image.
    """
    return 100 * accuracy / (latency_ms * energy_mj)


def directions(names: Sequence[str]) -> list[bool]:
    """For each metric, whether more is better. Raises KeyError as metric_of() does."""
    return [metric_of(name).maximise for name in names]


def limitable() -> tuple[str, ...]:
    """Metrics that hardware.limits may name, in the order of the table."""
    return tuple(name for name, metric in METRICS.items() if metric.may_be_limited)


def known_costs() -> tuple[str, ...]:
    """Metrics that search.limits may name: they may be limited and are known before training."""
    return tuple(name for name in limitable() if METRICS[name].known_before_training)


def spread_of(name: str) -> str | None:
    """The metric that holds the spread of another within one run.

    None where there is none: one predictor's latency has no spread over predictors.
    """
    return METRICS[name].spread if name in METRICS else None


def title_of(name: str) -> str:
    """What a metric is called for people, with its origin where a machine gave it.

    An undeclared one keeps the name its run has.

    >>> title_of("latency_ms"), title_of("latency_ms/pi4"), title_of("accuracy")
    ('predicted latency', 'predicted latency pi4', 'accuracy')
    """
    first, _, part = name.partition("/")
    title = first
    if metric := METRICS.get(first):
        title = f"{metric.origin} {metric.title}" if metric.origin in STATED else metric.title
    return f"{title} {part}".rstrip()


def label_of(name: str, metric: Metric) -> str:
    """Title with unit, for an axis or a column: 'predicted latency (ms)', 'ONNX file (MB)', 'parameters'.

    Args:
        name: of the metric, or of a part of it.
        metric: its row; of an undeclared metric, the one that undeclared() made.
    """
    return f"{title_of(name)} ({metric.symbol})" if metric.symbol else title_of(name)
