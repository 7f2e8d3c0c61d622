"""Cut GeoTIFFs and crossing points into chips: `python prepare.py dem=dem.tif ...` (see --help)."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from dxc.config.compose import resolved
from dxc.errors import exit_cleanly


@hydra.main(version_base="1.3", config_path="conf", config_name="prepare")
def main(cfg: DictConfig) -> None:
    with exit_cleanly():
        from dxc.data.next_step import next_step
        from dxc.geo.chips import cut_region
        from dxc.report.region_sheet import sheet_line
        from dxc.report.terminal import new_console, print_text

        try:
            report = cut_region(**resolved(cfg))
            sheet = sheet_line(report.folder, redraw=not report.found_complete)
        except KeyboardInterrupt:
            sys.exit("\ninterrupted; the same command goes on where it stopped")
        lines = [report.describe(), sheet, f"next: {next_step(report.folder.parent)}"]
        print_text(new_console(), "\n".join(lines))


if __name__ == "__main__":
    main()
