"""Figures of one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dxc.config.names import describe

if TYPE_CHECKING:
    import pandas as pd

    from dxc.data.cache import ChipCache
    from dxc.hardware.costs import Costs


def draw_detections(config: dict[str, Any], cache: ChipCache, predictions: pd.DataFrame, out: Path) -> None:
    """Draw chips with true and predicted boxes, and the precision-recall curve."""
    import numpy as np
    import torch

    from dxc.evaluation.average_precision import BOX
    from dxc.evaluation.boxes import best_iou
    from dxc.evaluation.match import Sample
    from dxc.report.detections import choose_samples, precision_recall, samples
    from dxc.report.figures import save

    probability, label = (predictions[name].to_numpy() for name in ("probability", "label"))
    claimed = torch.tensor(predictions[list(BOX)].to_numpy(dtype=float))
    overlap = best_iou(claimed, torch.tensor(cache.boxes(predictions.index.to_numpy()), dtype=claimed.dtype))
    chosen = choose_samples(probability, label, overlap=overlap.numpy())
    shown = []
    for place in chosen:
        row, index = predictions.iloc[place], np.array([predictions.index[place]])
        box = row[list(BOX)].to_numpy(dtype=float)
        shown.append(
            Sample(cache.images(index)[0], cache.boxes(index)[0], box, row["probability"], row["name"])
        )
    save(samples(shown, config["data"]["channels"]), out, "samples")
    if label.any():
        curve = precision_recall(probability, label, min_precision=config["task"]["min_precision"])
        save(curve, out, "precision_recall")


def draw_efficiency(config: dict[str, Any], costs: Costs, out: Path) -> None:
    """Plot measured time per image against batch size."""
    from dxc.report.efficiency import efficiency
    from dxc.report.figures import save

    if costs.efficiency is not None:
        table = {describe(config): costs.efficiency.table()}
        save(efficiency(table, title=costs.tags["dxc.measured_on"]), out, "efficiency")
