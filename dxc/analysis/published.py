"""Tables 4 and 5 of doi 10.1145/3624062.3624258, as printed, in the form of tracked runs: an example to analyse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dxc.config.names import describe

if TYPE_CHECKING:
    import pandas as pd

TABLE = Path(__file__).with_name("published.csv")
SOURCE = "published: doi 10.1145/3624062.3624258, table 4"
CHIPS = "chips of the published study (doi 10.1145/3624062.3624258)"
PREDICTED_FOR = (
    "cortexA76cpu_tflite21; adreno640gpu_tflite21; adreno630gpu_tflite21; myriadvpu_openvino2019r2"
)
RESNET = "dxc.models.resnet.ResNet"
MODEL_KNOBS = ("kernel", "stride", "padding", "pool", "pool_kernel", "pool_stride", "width")


def published_runs() -> tuple[pd.DataFrame, pd.DataFrame]:
    """(the five rows of table 4, the six conventional ResNet-18 of table 5), columns as in dxc.analysis.runs; run_id is
    'table 4 row 1' and so on. Accuracies as fractions; predictions and folds were not published."""
    import pandas as pd

    rows = pd.read_csv(TABLE)
    number = rows.groupby("table").cumcount() + 1
    runs = pd.DataFrame(
        {
            "run_id": [f"table {table} row {n}" for table, n in zip(rows["table"], number, strict=True)],
            "study": "published",
            "accuracy": rows["accuracy_percent"] / 100,
            "latency_ms": rows["latency_ms"],
            "latency_std_ms": rows["latency_std_ms"],
            "dxc.predicted_for": PREDICTED_FOR,
            "dxc.source": CHIPS,
            "onnx_mb": rows["onnx_mb"],
            "data": rows["channels"].astype(str) + "ch",
            "data.batch_size": rows["batch_size"].astype(str),
            "model._target_": RESNET,
            **{f"model.{key}": rows[key].astype(str) for key in MODEL_KNOBS},
        }
    )
    runs["name"] = [
        describe(
            {
                "model": {"_target_": RESNET, "blocks": 2, **{key: row[key] for key in MODEL_KNOBS}},
                "data": {"channels": range(row["channels"]), "batch_size": row["batch_size"]},
            }
        )
        for _, row in rows.iterrows()
    ]
    runs["name"] = "row " + number.astype(str) + ": " + runs["name"]
    searched = rows["table"] == 4
    return runs[searched].reset_index(drop=True), runs[~searched].reset_index(drop=True)
