"""Tests a calibrated package on networks that calibration never saw, and times the costing of a network.

    python calibrate.py name=mine && python benchmarks/predictor.py --packages packages --package mine
    python benchmarks/predictor.py --packages packages --package both --quantised    in int8, after quantised=true

Networks are drawn from the three spaces, without those in the package's own table, and exported. Each is predicted, and
measured twice in fresh processes with all others in between. The second measurement shows how much of the error is
noise of the machine. Run it alone on the machine, right after the calibration.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import _record
import numpy as np
import onnx
import pandas as pd
from scipy.stats import spearmanr

from dxc.deploy.export import export_onnx
from dxc.hardware.calibrate.calibrate import errors
from dxc.hardware.calibrate.networks import QUANTISED, Spec, draw, module, onnx_model
from dxc.hardware.measure.latency import measure
from dxc.hardware.predict.kernels import read_graph
from dxc.hardware.predict.packages import SHIPPED, load_package
from dxc.hardware.predict.predict import predict

NETWORKS = {"resnet": 60, "sppnet": 40, "mobilenet": 20}
SEED = 20231112


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--package", default="ort_cpu_xeon")
    parser.add_argument("--quantised", action="store_true", help="the networks in static int8")
    parser.add_argument("--packages", type=Path, default=SHIPPED, help="folder that the package is in")
    options = parser.parse_args()
    package = load_package(options.packages / options.package)
    seen = set(pd.read_parquet(package.folder / "networks.parquet")["spec"])

    with tempfile.TemporaryDirectory() as place:
        rows = [
            {
                "family": spec["family"],
                "spec": json.dumps(spec),
                "path": exported(spec, Path(place) / f"{number}.onnx"),
            }
            for number, spec in enumerate(unseen(seen, options.quantised))
        ]
        for row in rows:
            prediction = predict(row["path"], package)
            row["predicted"] = prediction.latency_ms
            row["macs"] = sum(each.kernel.macs for each in prediction.kernels)
        for again in ("", "_again"):
            for number, row in enumerate(rows):
                measured = measure(row["path"], threads=package.about["threads"])
                row[f"measured{again}"], row[f"valid{again}"] = measured.median_ms, measured.valid
                print(f"\r{again or 'first'}: {number + 1} of {len(rows)}", end="", flush=True)
        print()
        table = pd.DataFrame(rows)
        figures = {
            "package": {
                key: package.about[key] for key in ("device", "runtime_version", "threads", "networks")
            },
            "calibration_minutes": package.about["minutes_measuring"] + package.about["minutes_fitting"],
            **accuracy(table),
            **({} if options.quantised else cost_seconds(package, Path(place))),
        }
    print(json.dumps(figures, indent=1))
    if options.save:
        name = "predictor_int8" if options.quantised else "predictor"
        _record.save(name, figures)
        table.drop(columns="path").to_csv(
            _record.ROOT / "benchmarks" / "results" / f"{name}_networks.csv", index=False
        )


def unseen(seen: set[str], quantised: bool) -> Iterator[Spec]:
    """Networks of the spaces that are not in the package's table. Five of six ResNets are published ones."""
    rng = np.random.default_rng(SEED)
    for family, count in NETWORKS.items():
        while count:
            spec = draw(family, rng)
            if spec.get("pool") == "none":  # without a pool, its knobs have no effect
                twins = [{**spec, "pool_kernel": k, "pool_stride": s} for k, s in product((2, 3), (1, 2))]
            else:
                twins = [spec]
            if quantised:
                twins = [{**twin, QUANTISED: True} for twin in twins]
            keys = {json.dumps(twin) for twin in twins}
            if not keys & seen:
                seen |= keys
                count -= 1
                yield {**spec, QUANTISED: True} if quantised else spec


def exported(spec: Spec, path: Path) -> Path:
    """The network as dxc exports it, or quantises it."""
    if spec.get(QUANTISED):
        onnx.save(onnx_model(spec), path)
        return path
    return export_onnx(
        module(spec), path, in_channels=spec["in_channels"], size=spec["size"], check=False
    ).path


def accuracy(table: pd.DataFrame) -> dict[str, Any]:
    """Compare prediction, second measurement and multiply-accumulates with the first measurement."""
    good = table[table["valid"] & table["valid_again"]]
    figures: dict[str, Any] = {"networks": len(table), "valid": len(good)}
    for name, part in [("all", good), *good.groupby("family")]:
        figures[str(name)] = {
            "prediction": errors(part["predicted"].to_numpy(), part["measured"].to_numpy()),
            "prediction_of_the_mean_of_both": errors(
                part["predicted"].to_numpy(), part[["measured", "measured_again"]].mean(axis=1).to_numpy()
            ),
            "noise_floor": errors(part["measured_again"].to_numpy(), part["measured"].to_numpy()),
            "spearman": float(spearmanr(part["predicted"], part["measured"])[0]),
            "spearman_of_macs": float(spearmanr(part["macs"], part["measured"])[0]),
            "ms": [float(part["measured"].min()), float(part["measured"].max())],
        }
    return figures


def cost_seconds(package: Any, place: Path) -> dict[str, Any]:
    """Seconds to cost one network, and to export and predict all 180 networks of the published space twice."""
    spec = {"family": "resnet", "in_channels": 7, "size": 100, "kernel": 3, "stride": 2, "padding": 1}
    spec |= {"pool": "none", "pool_kernel": 3, "pool_stride": 2, "width": 32, "blocks": [2, 2, 2, 2]}
    one: dict[str, list[float]] = {"export": [], "predict": [], "measure": []}
    for _ in range(5):
        times = [time.perf_counter()]
        path = exported(spec, place / "one.onnx")
        times.append(time.perf_counter())
        predict(path, package)
        times.append(time.perf_counter())
        measure(path, threads=package.about["threads"])
        times.append(time.perf_counter())
        for name, seconds in zip(one, np.diff(times), strict=True):
            one[name].append(float(seconds))

    pools = [("none", 3, 2), *(("max", kernel, stride) for kernel, stride in product((2, 3), (1, 2)))]
    space = list(product((5, 7), (3, 5), (1, 2), (1, 2, 3), pools, (32, 48, 64)))
    export_seconds = predict_seconds = 0.0
    for in_channels, kernel, stride, padding, (pool, pool_kernel, pool_stride), width in space:
        begun = time.perf_counter()
        path = exported(
            {
                **spec,
                "in_channels": in_channels,
                "kernel": kernel,
                "stride": stride,
                "padding": padding,
                "pool": pool,
            }
            | {"pool_kernel": pool_kernel, "pool_stride": pool_stride, "width": width},
            place / "one.onnx",
        )
        between = time.perf_counter()
        graph = read_graph(path)
        predict(graph, package)
        export_seconds += between - begun
        predict_seconds += time.perf_counter() - between
    return {
        "one_network_seconds": {name: _record.spread(seconds, 3) for name, seconds in one.items()},
        "resnet_space": {
            "networks": len(space),
            "export_seconds": export_seconds,
            "predict_seconds": predict_seconds,
        },
    }


if __name__ == "__main__":
    main()
