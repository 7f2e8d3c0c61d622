"""Train one configuration, export it, track it: `python train.py data=5ch model.width=48` (see --help)."""

from __future__ import annotations

import os
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import dxc.config.compose  # noqa: F401  registers the resolvers that conf/ uses
from dxc.config.hidden import hide_command_line
from dxc.errors import exit_cleanly
from dxc.text import for_terminal


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    out = Path(HydraConfig.get().runtime.output_dir) / "artifacts"
    with exit_cleanly():
        from dxc.config.plan import Plan

        plan = Plan.of(cfg)
        if plan.preview:
            from dxc.pipeline.preview import preview

            print(for_terminal(f"sheet of chips: {os.path.relpath(preview(plan, out))}; nothing was trained"))
            return None
        from dxc.pipeline.run import run
        from dxc.report.console import print_result

        result = run(plan, out)
        print_result(result)
    return result.metrics[result.score]


if __name__ == "__main__":
    hide_command_line()
    main()
