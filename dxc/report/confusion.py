"""The confusion matrix of a run as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dxc.data.layout import CLASS_NAMES
from dxc.evaluation.few_chips import is_right, wilson_interval
from dxc.metrics import title_of
from dxc.report.figures import ONE_COLUMN_IN, STYLE, note_below

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion_matrix(probability: ArrayLike, label: ArrayLike, *, note: str = "") -> Figure:
    """True classes against predicted ones: counts, and the share of each row.

    The title gives the accuracy over all chips, pooled, with its 95 % interval (Wilson).

    Args:
        probability: (n,) of a crossing; one is predicted above 0.5.
        label: (n,) 1 = crossing, 0 = none.
        note: below the figure.

    Raises:
        ValueError: no chip.
    """
    import matplotlib
    from matplotlib.figure import Figure

    right, positive = is_right(probability, label), np.asarray(label) == 1
    if not len(right):
        raise ValueError("no prediction to count")
    counts = np.array([[(right & ~positive).sum(), (~right & ~positive).sum()],
                       [(~right & positive).sum(), (right & positive).sum()]])  # fmt: skip
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    low, high = wilson_interval(int(right.sum()), len(right))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(ONE_COLUMN_IN, 0.95 * ONE_COLUMN_IN), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(counts.shape):
            share = shares[row, column]
            percent = f"{share:.1%}" if totals[row, 0] else "–"
            axes.text(
                column, row, f"{counts[row, column]:,}\n{percent}", ha="center", va="center",
                fontsize=10, color="white" if share > 0.55 else "black",
            )  # fmt: skip
        names = [name.replace(" ", "\n") for name in CLASS_NAMES]
        axes.set_xticks(range(2), CLASS_NAMES)
        axes.set_yticks(
            range(2), [f"{name}\n({count:,})" for name, count in zip(names, totals[:, 0], strict=True)]
        )
        axes.tick_params(length=0)
        axes.set(xlabel="predicted", ylabel="true (chips)")
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_title(f"{title_of('accuracy')} {right.mean():.3f}, 95 % interval {low:.3f} to {high:.3f}")
        note_below(figure, note, ONE_COLUMN_IN)
    return figure
