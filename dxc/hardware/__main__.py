"""Compares what exported files cost: `python -m dxc.hardware model.onnx other.onnx hardware=a5500` (see --help)."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.errors import ConfigError, exit_cleanly
from dxc.files import write_atomically
from dxc.text import LogFormatter


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dxc.hardware",
        description="Predicted against measured latency of exported files. With several batch sizes, as hardware=a5500 "
        "has them, also the latency of each and the optimum, and where the time goes: kernels by class, memory "
        "operations, CUDA API calls.",
    )
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="model.onnx | KEY=VALUE",
        help="files, and what to measure them on: hardware=pi, hardware.runtime=torch, "
        "hardware.predictors=[my_cpu], hardware.batches=[1,2,4], ...",
    )
    parser.add_argument(
        "--profile",
        choices=("auto", "none", "torch", "nsight"),
        help="where the time goes (default: auto with several batch sizes, else none)",
    )
    parser.add_argument(
        "--csv", type=Path, help="also write the table to this file; NAME_batches and NAME_profile beside it"
    )
    options = parser.parse_args()
    overrides = [each for each in options.arguments if "=" in each and not each.endswith(".onnx")]
    files = [Path(each) for each in options.arguments if each not in overrides]
    if not files:
        parser.error("name at least one exported file: model.onnx")
    console = logging.StreamHandler()
    console.setFormatter(LogFormatter(logging.BASIC_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[console])
    with exit_cleanly():
        from hydra import compose, initialize_config_dir
        from hydra.errors import HydraException

        from dxc.config.hardware import Hardware
        from dxc.hardware.costs import compare
        from dxc.hardware.profiling.tables import published_shares
        from dxc.report.console import print_comparison
        from dxc.report.tables import comma_separated

        with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
            given = [f"+{each}" if each.startswith("hardware=") else each for each in overrides]
            if not any(each.startswith("+hardware=") for each in given):
                given.insert(0, "+hardware=cpu")
            try:
                config = resolved(compose(overrides=given))
            except HydraException as error:
                raise ConfigError(f"{' '.join(overrides)}: {error}") from error
        found = compare(files, Hardware.of(config["hardware"]), profile=options.profile)
        published = published_shares() if config["hardware"]["name"] == "a5500" else None
        print_comparison(
            found.table, found.notes, batches=found.batches, profile=found.profile, published=published
        )
        if options.csv:
            frames = {"": found.table, "_batches": found.batches, "_profile": found.profile}
            for ending, frame in frames.items():
                if not ending or not frame.empty:
                    path = options.csv.with_name(f"{options.csv.stem}{ending}{options.csv.suffix}")
                    write_atomically(path, comma_separated(frame))


if __name__ == "__main__":
    main()
