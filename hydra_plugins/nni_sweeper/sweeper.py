"""The shell between Hydra and dxc.search. Imported at every start of every script: nothing heavy here.

Hydra runs this file without entering it in sys.modules: dataclasses cannot resolve postponed annotations then, so
there is no `from __future__ import annotations`.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class NniSweeperConf:
    """hydra/sweeper=nni. What the search does is in the section `search` of conf/search.yaml."""

    _target_: str = "hydra_plugins.nni_sweeper.sweeper.NniSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    """The axes (conf/space): key -> values in Hydra's sweep syntax."""


ConfigStore.instance().store(group="hydra/sweeper", name="nni", node=NniSweeperConf, provider="nni_sweeper")


class NniSweeper(Sweeper):
    """Asks an NNI tuner, or dxc's own, for points, and has the chosen launcher run them."""

    def __init__(self, params: DictConfig | None = None) -> None:
        self.params = params
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Called once with the overrides of the command line, sweeps among them."""
        from dxc.errors import exit_cleanly

        print("search: reading the configuration and the space", file=sys.stderr, flush=True)
        with exit_cleanly():
            from dxc.search.launching import runner_for
            from dxc.search.study import search

            params = OmegaConf.to_container(self.params) if self.params is not None else {}
            search(params, arguments, runner_for(self.config, self.hydra_context, self.launcher))  # type: ignore[arg-type]
