"""Designs proved on their device: `python deploy.py study=first hardware=pi hardware.host=pi@address` (see --help)."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from dxc.config.compose import resolved
from dxc.config.hidden import hide_command_line
from dxc.config.names import quote_texts
from dxc.errors import exit_cleanly, signals_raise


@hydra.main(version_base="1.3", config_path="conf", config_name="deploy")
def main(cfg: DictConfig) -> None:
    with exit_cleanly(), signals_raise():
        from dxc.deployment.settings import Deploy

        asked = Deploy.of(resolved(cfg))
        from dxc.deployment.deployment import deploy, require_all
        from dxc.report.deployment import print_deployment

        result = deploy(asked)
        print_deployment(result)
        require_all(result)


if __name__ == "__main__":
    sys.argv[1:] = quote_texts(sys.argv[1:], ("where",))
    hide_command_line()
    main()
