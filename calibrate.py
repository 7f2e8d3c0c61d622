"""Make an nn-Meter predictor package for this machine: `python calibrate.py hardware=cpu name=my_cpu` (see --help)."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from dxc.config.compose import resolved
from dxc.errors import exit_cleanly


@hydra.main(version_base="1.3", config_path="conf", config_name="calibrate")
def main(cfg: DictConfig) -> None:
    with exit_cleanly():
        from dxc.config.hardware import Hardware
        from dxc.hardware.calibrate.calibrate import calibrate
        from dxc.report.console import print_package

        config = resolved(cfg)
        hardware = Hardware.of(config["hardware"])
        folder = calibrate(
            config["name"],
            hardware,
            **{
                key: config[key]
                for key in ("networks", "max_minutes", "seed", "overwrite", "progress", "quantised")
            },
        )
        print_package(Path(folder))


if __name__ == "__main__":
    main()
