"""A look at the chips before anything is trained: `python train.py preview=true`."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dxc.config.build import build
from dxc.config.compose import resolved
from dxc.data.sample import sample_of_folder
from dxc.errors import ConfigError
from dxc.pipeline.chain import FIGURES
from dxc.report.chip_sheet import draw_chip_sheet
from dxc.report.run_figures import CHIPS_SHOWN, source_of


def preview(cfg: DictConfig, out: Path) -> Path:
    """Write a sheet of some chips as a run would read them, and return its path. Nothing is trained or tracked.

    Chips that cannot be split into folds yet are shown too: the sheet may tell why.

    Args:
        cfg: composed by Hydra.
        out: a folder for the run's files.

    Raises:
        DxcError: for everything that a user can mend.
    """
    config = resolved(cfg)
    if config["preview"] is not True:
        raise ConfigError(f"preview must be true or false, not {config['preview']!r}")
    datamodule = build(config["data"], "data", source=build(config["source"], "source"))
    sample = sample_of_folder(datamodule.source.prepare(), datamodule.recipe, CHIPS_SHOWN)
    return draw_chip_sheet(sample, out / FIGURES, source=source_of(config))
