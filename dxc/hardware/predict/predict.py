"""Exported file -> predicted latency of each kernel, with nn-Meter's method and packages of predictors."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dxc.hardware.predict.features import to_ms
from dxc.hardware.predict.kernels import Graph, Kernel, detect, predictor_names, read_graph, sum_macs
from dxc.hardware.predict.packages import Package

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class KernelLatency:
    """One kernel with its predicted latency. `ms` is None if the package has no predictor for it."""

    kernel: Kernel
    predictor: str | None
    ms: float | None


@dataclass(frozen=True)
class Prediction:
    """What one package predicts for one network, batch 1."""

    package: str
    about: dict[str, Any]
    kernels: tuple[KernelLatency, ...]

    @property
    def latency_ms(self) -> float:
        """Sum over the covered kernels. It is a lower bound if `uncovered` is not empty."""
        return sum(each.ms for each in self.kernels if each.ms is not None)

    @property
    def uncovered(self) -> tuple[Kernel, ...]:
        """Kernels for which the package has no predictor. They are in no sum."""
        return tuple(each.kernel for each in self.kernels if each.ms is None)

    @property
    def uncovered_macs_share(self) -> float | None:
        """Share of the network's multiply-accumulates in uncovered kernels, 0 to 1; None where they are unknown."""
        total = sum_macs(each.kernel.macs for each in self.kernels)
        if total is None:
            return None
        return (
            (sum_macs(kernel.macs for kernel in self.uncovered) or 0) / total
            if total
            else float(bool(self.uncovered))
        )

    @property
    def says_something(self) -> bool:
        """False if all arithmetic lies in uncovered kernels: then the covered ones do not give a latency."""
        return not self.uncovered or any(each.kernel.macs and each.ms is not None for each in self.kernels)

    def table(self) -> pd.DataFrame:
        """One row a kernel: package, op, features, macs, predictor, ms (missing where not covered), nodes."""
        import pandas as pd

        return pd.DataFrame(
            {
                "package": self.package,
                "op": each.kernel.op,
                "features": None if each.kernel.features is None else list(each.kernel.features),
                "macs": each.kernel.macs,
                "predictor": each.predictor,
                "ms": np.nan if each.ms is None else each.ms,
                "nodes": ", ".join(each.kernel.nodes),
            }
            for each in self.kernels
        )


def predict(network: Path | Graph, package: Package) -> Prediction:
    """Predict the latency of a network for one image with one package.

    Args:
        network: an .onnx file, or the graph from read_graph, so that several packages share one reading.
        package: the package of predictors.

    Raises:
        HardwareError: the file or the fusion rules cannot be read.
    """
    graph = network if isinstance(network, Graph) else read_graph(network)
    kernels = detect(graph, package.rules)
    predictors: list[str | None] = []
    rows: dict[str, list[int]] = defaultdict(list)
    for position, kernel in enumerate(kernels):
        held = [name for name in predictor_names(kernel.op) if name in package.regressors]
        predictors.append(held[0] if held and kernel.features is not None else None)
        if (name := predictors[-1]) is not None:
            rows[name].append(position)
    ms: list[float | None] = [None] * len(kernels)
    for name, positions in rows.items():
        features = np.array([kernels[position].features for position in positions])
        for position, value in zip(positions, to_ms(package, name, features), strict=True):
            ms[position] = float(value)
    return Prediction(
        package.name,
        package.about,
        tuple(KernelLatency(*each) for each in zip(kernels, predictors, ms, strict=True)),
    )


def latency_metrics(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Metrics of dxc.metrics: latency_ms/NAME of each package, and their mean and sample standard deviation.

    With one package latency_std_ms is missing, not 0. uncovered_macs_share is the largest of all packages; it is
    missing where MACs are unknown. A package that covers none of the arithmetic predicts no latency.
    """
    each = {f"latency_ms/{p.package}": p.latency_ms for p in predictions if p.says_something}
    metrics = {"latency_ms": statistics.mean(each.values()), **each} if each else {}
    if len(each) > 1:
        metrics["latency_std_ms"] = statistics.stdev(each.values())
    shares = [share for p in predictions if (share := p.uncovered_macs_share) is not None]
    return metrics | ({"uncovered_macs_share": max(shares)} if shares else {})


def describe_coverage(prediction: Prediction) -> str | None:
    """'NAME has no predictor for 2 gap, 1 fc (0.00% of the MACs) ...'; None if every kernel has one."""
    if not prediction.uncovered:
        return None
    counts: dict[str, int] = defaultdict(int)
    for kernel in prediction.uncovered:
        counts[kernel.op] += 1
    listing = ", ".join(f"{count} {op}" for op, count in counts.items())
    share = prediction.uncovered_macs_share
    of_all = "an unknown share of the MACs" if share is None else f"{share:.2%} of the MACs"
    so = (
        "its latency leaves them out"
        if prediction.says_something
        else "it predicts no latency for this network"
    )
    return f"{prediction.package} has no predictor for {listing} ({of_all}): {so}"
