"""Compares predicted with measured latency: `python -m dxc.hardware model.onnx other.onnx` (see --help)."""

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
        prog="python -m dxc.hardware", description="Predicted against measured latency of exported files."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="model.onnx")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="hardware=pi, hardware.predictors=[my_cpu], ...",
    )
    parser.add_argument("--csv", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    console = logging.StreamHandler()
    console.setFormatter(LogFormatter(logging.BASIC_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[console])
    with exit_cleanly():
        from hydra import compose, initialize_config_dir
        from hydra.errors import HydraException

        from dxc.config.hardware import Hardware
        from dxc.hardware.costs import compare
        from dxc.report.console import print_comparison
        from dxc.report.tables import comma_separated

        with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
            overrides = [f"+{each}" if each.startswith("hardware=") else each for each in options.set]
            if not any(each.startswith("+hardware=") for each in overrides):
                overrides.insert(0, "+hardware=cpu")
            try:
                config = resolved(compose(overrides=overrides))
            except HydraException as error:
                raise ConfigError(f"--set {' '.join(options.set)}: {error}") from error
        table, notes = compare(options.files, Hardware.of(config["hardware"]))
        print_comparison(table, notes)
        if options.csv:
            write_atomically(options.csv, comma_separated(table))


if __name__ == "__main__":
    main()
