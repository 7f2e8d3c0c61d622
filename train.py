"""Train one configuration, export it, track it: `python train.py data=5ch model.width=48` (see --help)."""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import dxc.config.compose  # noqa: F401  registers the resolvers that conf/ uses
from dxc.config.hidden import hide_command_line
from dxc.errors import exit_cleanly


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    with exit_cleanly():
        from dxc.config.plan import Plan
        from dxc.pipeline.run import run
        from dxc.report.console import print_result

        result = run(Plan.of(cfg), Path(HydraConfig.get().runtime.output_dir) / "artifacts")
        print_result(result)
    return result.metrics[result.score]


if __name__ == "__main__":
    hide_command_line()
    main()
