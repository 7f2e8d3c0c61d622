"""Search a space of networks: `python search.py model.kernel=3 search.tuner=tpe study=first` (see --help)."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import dxc.config.compose  # noqa: F401  registers the resolvers that conf/ uses
from dxc.config.hidden import hide_command_line


@hydra.main(version_base="1.3", config_path="conf", config_name="search")
def main(cfg: DictConfig) -> str:
    """One trial; the sweeper (hydra_plugins/nni_sweeper) calls it for each."""
    from dxc.search.trial import run_trial

    return run_trial(cfg, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    if not {"--cfg", "-c", "--info", "-i", "--run", "-r", "--shell-completion", "-sc"} & set(sys.argv):
        # conf/search.yaml says so too, but there Hydra hides a mistyped key behind a complaint about axes
        sys.argv.append("--multirun")
    hide_command_line()
    main()
