"""Measures what running operators side by side gains on a GPU: the four published detectors, and an Inception block.

    python benchmarks/scheduling.py                                             on a GPU, some minutes
    python benchmarks/scheduling.py --batches 1 8 --compile 1 --seconds 60      leaves out what takes longer
    python benchmarks/scheduling.py --device cpu --tiny --batches 1 2 --precisions fp32    tries the script: 1 minute

Every schedule of a network is compared with the sequential CUDA graph of the same operators, batch and precision, in
turn. Random weights: time does not depend on them. Each table is written as it grows (--out), and all of them together
to benchmarks/results/scheduling.csv with --save.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from _record import ROOT

from dxc.deploy.export import export_onnx
from dxc.errors import DxcError
from dxc.files import write_atomically
from dxc.hardware.schedule.compare import compare_schedules
from dxc.hardware.schedule.inception import export_inception
from dxc.models.sppnet import SppNet
from dxc.report.schedules import print_schedules

if TYPE_CHECKING:
    import pandas as pd

# kernel, level, features of conf/experiment/sppnet_*.yaml
VARIANTS = {
    "sppnet_original": (3, 4, 1024), "sppnet_1": (5, 4, 1024), "sppnet_2": (3, 5, 4096), "sppnet_3": (3, 5, 2048)
}  # fmt: skip


def export_networks(folder: Path, *, tiny: bool = False) -> list[Path]:
    """Write the networks: the Inception block first, since it is the one that can gain.

    Args:
        folder: where to.
        tiny: with few channels and pixels, to try the script.
    """
    paths = [export_inception(folder / "inception.onnx", width=0.02 if tiny else 1.0)]
    for name, (kernel, level, features) in VARIANTS.items():
        model = SppNet(3, kernel=kernel, level=level, features=16 if tiny else features)
        paths.append(
            export_onnx(model, folder / f"{name}.onnx", in_channels=3, size=32 if tiny else 100).path
        )
    return paths


def compare_networks(
    networks: Sequence[Path],
    out: Path,
    *,
    batches: Sequence[int],
    precisions: Sequence[str] = ("fp32", "bf16"),
    device: str = "cuda",
    compile_batches: Sequence[int] = (),
    compile_seconds: float = 120.0,
    seconds: float | None = None,
) -> pd.DataFrame:
    """Compare the schedules of some networks, print each table, and save it as it grows.

    A network that cannot be measured does not stop the others.

    Args:
        networks: exported files.
        out: folder for NETWORK_PRECISION.parquet.
        batches: batch sizes.
        precisions: fp32 (without TF32), bf16, fp16.
        device: cuda or cpu.
        compile_batches: batch sizes for torch.compile too.
        compile_seconds: its time limit for one network in one precision.
        seconds: time limit of the rest for all networks together; None: no limit.

    Returns:
        All rows; see dxc.hardware.schedule.compare.Comparison.table().
    """
    import pandas as pd

    out.mkdir(parents=True, exist_ok=True)
    tables, begun = [], time.perf_counter()
    todo = [(precision, onnx) for precision in precisions for onnx in networks]
    for place, (precision, onnx) in enumerate(todo):
        left = None if seconds is None else seconds - (time.perf_counter() - begun)
        if left is not None and left <= 0:
            print(f"{onnx.name} in {precision} left out: {seconds:.0f} s are allowed", flush=True)
            continue
        try:
            found = compare_schedules(
                onnx,
                batches,
                precision=precision,
                device=device,
                compile_batches=compile_batches,
                compile_seconds=compile_seconds,
                seconds=None if left is None else left / (len(todo) - place),
                out=out / f"{onnx.stem}_{precision}.parquet",
            )
        except DxcError as error:
            print(f"{onnx.name} in {precision}: {error}", flush=True)
            continue
        print_schedules(onnx.name, found.conditions, found.table(), found.findings(), found.notes)
        tables.append(found.table())
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="few channels and pixels, to try the script")
    parser.add_argument("--compile", type=int, nargs="*", default=[], help="batches for torch.compile too")
    parser.add_argument("--compile-seconds", type=float, default=120.0, help="its time limit for each table")
    parser.add_argument("--seconds", type=float, help="time limit of the rest, all tables together")
    parser.add_argument(
        "--out", type=Path, help="folder for the tables as they grow; default: a temporary one"
    )
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/scheduling.csv")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        networks = export_networks(Path(name), tiny=arguments.tiny)
        table = compare_networks(
            networks,
            arguments.out or Path(name),
            batches=arguments.batches,
            precisions=arguments.precisions,
            device=arguments.device,
            compile_batches=arguments.compile,
            compile_seconds=arguments.compile_seconds,
            seconds=arguments.seconds,
        )
    if arguments.save:
        path = ROOT / "benchmarks" / "results" / "scheduling.csv"
        write_atomically(path, table.to_csv(index=False))
        print(f"saved {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
