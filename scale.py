"""What more devices buy: `python scale.py devices=1,2,4,8 minutes=5` (see --help)."""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dxc.config.compose import resolved
from dxc.config.hidden import hide_command_line
from dxc.config.names import quote_texts
from dxc.errors import exit_cleanly

TEXTS = ("devices", "nodes", "batch", "scaling", "until", "source.shards", "source.val_shards")
"""Keys whose values Hydra would read as its own grammar."""


@hydra.main(version_base="1.3", config_path="conf", config_name="scale")
def main(cfg: DictConfig) -> None:
    launcher = OmegaConf.to_container(HydraConfig.get().launcher, resolve=True)
    with exit_cleanly():
        from dxc.report.scaling import print_scaling
        from dxc.scaling.settings import Settings
        from dxc.scaling.study import scale

        print_scaling(scale(Settings.of(resolved(cfg), launcher)))


if __name__ == "__main__":
    sys.argv[1:] = quote_texts(sys.argv[1:], TEXTS)
    hide_command_line()
    main()
