"""The tables of the two published studies, as printed, in the form of tracked runs: examples to analyse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dxc.config.names import describe
from dxc.errors import AnalysisError
from dxc.models.registry import short_label

if TYPE_CHECKING:
    import pandas as pd

PREDICTED_FOR = (
    "cortexA76cpu_tflite21; adreno640gpu_tflite21; adreno630gpu_tflite21; myriadvpu_openvino2019r2"
)
CHIPS = "chips of the published study (doi {doi})"
RESNET = "dxc.models.resnet.ResNet"
RESNET_KNOBS = ("kernel", "stride", "padding", "pool", "pool_kernel", "pool_stride", "width")
SPPNET = "dxc.models.sppnet.SppNet"
SPPNET_KNOBS = ("kernel", "level", "features")


class PublishedStudy(NamedTuple):
    """Tables of one paper.

    Attributes:
        runs: the designs, columns as in dxc.analysis.runs; run_id says where the row stands. Shares are fractions;
            predictions and folds were not published.
        baseline: designs to show beside them, or None.
        objectives: what the paper weighs against each other.
        source: the table and its DOI.
        notes: what a reader has to know of the figures.
    """

    runs: pd.DataFrame
    baseline: pd.DataFrame | None
    objectives: tuple[str, ...]
    source: str
    notes: tuple[str, ...]


def published_study(name: str) -> PublishedStudy:
    """A published study by its name in STUDIES. Raises AnalysisError for another name."""
    if name not in STUDIES:
        raise AnalysisError(f"study={name}: of published studies there are {', '.join(STUDIES)}")
    return STUDIES[name]()


def _table(name: str) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(Path(__file__).with_name(f"published_{name}.csv"))


def _resnet18() -> PublishedStudy:
    """Tables 4 and 5 of doi 10.1145/3624062.3624258: five designs of a search, six conventional ResNet-18."""
    import pandas as pd

    rows = _table("resnet18")
    number = rows.groupby("table").cumcount() + 1
    runs = pd.DataFrame(
        {
            "run_id": [f"table {table} row {n}" for table, n in zip(rows["table"], number, strict=True)],
            "study": "published_resnet18",
            "accuracy": rows["accuracy_percent"] / 100,
            "latency_ms": rows["latency_ms"],
            "latency_std_ms": rows["latency_std_ms"],
            "dxc.predicted_for": PREDICTED_FOR,
            "dxc.source": CHIPS.format(doi="10.1145/3624062.3624258"),
            "onnx_mb": rows["onnx_mb"],
            "data": rows["channels"].astype(str) + "ch",
            "data.batch_size": rows["batch_size"].astype(str),
            "model._target_": RESNET,
            **{f"model.{key}": rows[key].astype(str) for key in RESNET_KNOBS},
        }
    )
    runs["name"] = [
        describe(
            {
                "model": {"_target_": RESNET, "blocks": 2, **{key: row[key] for key in RESNET_KNOBS}},
                "data": {"channels": range(row["channels"]), "batch_size": row["batch_size"]},
            }
        )
        for _, row in rows.iterrows()
    ]
    runs["name"] = "row " + number.astype(str) + ": " + runs["name"]
    searched = rows["table"] == 4
    return PublishedStudy(
        runs[searched].reset_index(drop=True),
        runs[~searched].reset_index(drop=True),
        ("accuracy", "latency_ms", "onnx_mb"),
        "doi 10.1145/3624062.3624258, table 4",
        ("the table's title calls all five designs non-dominated", "baseline: table 5"),
    )


def _sppnet() -> PublishedStudy:
    """The SPP-Nets of doi 10.1145/3624062.3624260: the original and three that were found by a search."""
    import pandas as pd

    rows = _table("sppnet")
    runs = pd.DataFrame(
        {
            "run_id": "SPP-Net " + rows["name"],
            "study": "published_sppnet",
            "score": "average_precision",
            "average_precision": rows["average_precision_percent"] / 100,
            "measured_latency_ms": rows["sequential_ms"],
            "measured_latency_ms/IOS": rows["ios_ms"],
            "dxc.measured_on": "NVIDIA RTX A5500, batch 1",
            "dxc.source": CHIPS.format(doi="10.1145/3624062.3624260"),
            "model._target_": SPPNET,
            **{f"model.{key}": rows[key].astype(str) for key in SPPNET_KNOBS},
        }
    )
    runs["name"] = [
        f"{row['name']}: {short_label({'_target_': SPPNET, **{key: row[key] for key in SPPNET_KNOBS}})}"
        for _, row in rows.iterrows()
    ]
    return PublishedStudy(
        runs,
        None,
        ("average_precision", "measured_latency_ms", "measured_latency_ms/IOS"),
        "doi 10.1145/3624062.3624260",
        (
            "measured latency: operators one after the other; IOS: by the inter-operator scheduler of Ding et al. "
            "(MLSys 2021)",
        ),
    )


STUDIES = {"resnet18": _resnet18, "sppnet": _sppnet}
