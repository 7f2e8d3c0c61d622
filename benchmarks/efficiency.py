"""Measures latency against batch size for the four published detectors: time of one execution / batch.

    python benchmarks/efficiency.py                3 minutes; one thread of ONNX Runtime
    python benchmarks/efficiency.py --threads 4

They are exported at 3 x 100 x 100 with random weights, on which time does not depend. Batches of 1, 2, 4, ..., 64 are
each measured in a fresh process. Before that, outputs of a batch are compared with those of its images one by one.
Draws docs/figures/efficiency.png.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

from _record import ROOT, save

from dxc.config.hardware import Hardware
from dxc.deploy.export import export_onnx
from dxc.hardware.costs import measure_on
from dxc.hardware.measure.batches import measure_batches
from dxc.hardware.profiling.torch_profile import BATCHES
from dxc.hardware.spec import device_name
from dxc.models.sppnet import SppNet
from dxc.report.efficiency import efficiency
from dxc.report.figures import save as save_figure

VARIANTS = {"original": (3, 4, 1024), "#1": (5, 4, 1024), "#2": (3, 5, 4096), "#3": (3, 5, 2048)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/efficiency.json")
    arguments = parser.parse_args()
    hardware = Hardware(name="cpu", threads=arguments.threads)
    curves, figures = {}, {}
    with tempfile.TemporaryDirectory() as name:
        for variant, (kernel, level, features) in VARIANTS.items():
            onnx = Path(name) / "model.onnx"
            export_onnx(
                SppNet(3, kernel=kernel, level=level, features=features), onnx, in_channels=3, size=100
            )
            found = measure_batches(onnx, BATCHES, partial(measure_on, onnx, hardware))
            curves[f"SPP-Net {variant}"] = found.table()
            per_image = ", ".join(f"{batch}: {ms:.2f}" for batch, ms in found.ms_per_image.items())
            print(f"{variant:9} ms an image by batch {per_image}; least at {found.optimum_batch}", flush=True)
            for note in found.notes:
                print(f"          {note}")
            figures[variant] = {"ms_per_image": found.ms_per_image, "optimum_batch": found.optimum_batch}
    title = f"{device_name()}; ONNX Runtime, {arguments.threads} thread(s)"
    for path in save_figure(efficiency(curves, title=title), ROOT / "docs" / "figures", "efficiency"):
        if path.suffix == ".svg":
            path.unlink()
    if arguments.save:
        save("efficiency", {"threads": arguments.threads, **figures})


if __name__ == "__main__":
    main()
