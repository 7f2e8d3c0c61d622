"""The confusion matrix of a run as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from dxc.data.layout import CLASS_NAMES
from dxc.evaluation.answers import predicted_label
from dxc.evaluation.few_chips import wilson_interval
from dxc.metrics import title_of
from dxc.report.figures import ONE_COLUMN_IN, STYLE, TWO_COLUMNS_IN, note_below
from dxc.text import for_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion_matrix(
    probability: ArrayLike,
    label: ArrayLike,
    *,
    classes: Sequence[str] = CLASS_NAMES,
    unit: str = "chip",
    note: str = "",
) -> Figure:
    """True classes against predicted ones: counts, and the share of each row.

    The title gives the accuracy over all chips, pooled, with its 95 % interval (Wilson).

    Args:
        probability: (n,) of a crossing, or (n, classes); see dxc.evaluation.answers.predicted_label.
        label: (n,) of chips 1 = crossing, 0 = none.
        classes: names by label.
        unit: what an image is called: chip or image.
        note: below the figure.

    Raises:
        ValueError: no chip.
    """
    import matplotlib
    from matplotlib.figure import Figure

    predicted, label = predicted_label(probability), np.asarray(label)
    if not len(label):
        raise ValueError("no prediction to count")
    several = len(classes) > 2
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(counts, (label, predicted), 1)
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    right = int(counts.trace())
    low, high = wilson_interval(right, len(label))
    width = TWO_COLUMNS_IN if several else ONE_COLUMN_IN
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, 0.95 * width), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(counts.shape):
            share = shares[row, column]
            percent = f"{share:.1%}" if totals[row, 0] else "–"
            if several and not counts[row, column]:
                continue  # most cells of many classes are empty
            axes.text(
                column, row, f"{counts[row, column]:,}\n{percent}", ha="center", va="center",
                fontsize=7 if several else 10, color="white" if share > 0.55 else "black",
            )  # fmt: skip
        names = [for_figure(name).replace(" ", "\n") for name in classes]
        slanted: dict[str, Any] = {"rotation": 45, "ha": "right"} if several else {}
        axes.set_xticks(range(len(classes)), names if several else classes, **slanted)
        axes.set_yticks(
            range(len(classes)),
            [f"{name}\n({count:,})" for name, count in zip(names, totals[:, 0], strict=True)],
        )
        axes.tick_params(length=0)
        axes.set(xlabel="predicted", ylabel=f"true ({unit}s)")
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_title(
            f"{title_of('accuracy')} {right / len(label):.3f}, 95 % interval {low:.3f} to {high:.3f}"
        )
        note_below(figure, note, width)
    return figure
