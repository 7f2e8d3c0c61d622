"""Schedules of an exported file on this GPU: `python -m dxc.hardware.schedule model.onnx` (see --help)."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from dxc.errors import ConfigError, exit_cleanly
from dxc.text import LogFormatter


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dxc.hardware.schedule",
        description="Run operators of a network side by side, and compare with one after the other, at the same batch.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="model.onnx")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64], metavar="N")
    parser.add_argument(
        "--precision", default="fp32", choices=["fp32", "bf16", "fp16"], help="fp32 is without TF32"
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--compile",
        nargs="*",
        type=int,
        default=[],
        metavar="N",
        help="batches for torch.compile too, tens of s each",
    )
    parser.add_argument("--compile-seconds", type=float, default=120.0, help="its time limit for a file")
    parser.add_argument("--seconds", type=float, help="time limit of the rest for a file")
    parser.add_argument("--out", type=Path, help="folder for a table of each file (Parquet)")
    options = parser.parse_args()
    console = logging.StreamHandler()
    console.setFormatter(LogFormatter(logging.BASIC_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[console])
    with exit_cleanly():
        if min([*options.batches, *options.compile]) < 1:
            raise ConfigError("--batches and --compile take whole numbers of at least 1")
        from dxc.hardware.schedule.compare import compare_schedules
        from dxc.report.schedules import print_schedules

        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
        for file in options.files:
            found = compare_schedules(
                file,
                options.batches,
                precision=options.precision,
                device=options.device,
                compile_batches=options.compile,
                compile_seconds=options.compile_seconds,
                seconds=options.seconds,
                out=options.out and options.out / f"{file.stem}_{options.precision}.parquet",
            )
            print_schedules(file.name, found.conditions, found.table(), found.findings(), found.notes)


if __name__ == "__main__":
    main()
