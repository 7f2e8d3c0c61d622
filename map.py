"""Map the crossings of a watershed: `python map.py run=RUN_ID dem=dem.tif ... out=crossings.gpkg` (see --help)."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from dxc.config.compose import resolved
from dxc.config.hidden import hide_command_line
from dxc.errors import exit_cleanly


@hydra.main(version_base="1.3", config_path="conf", config_name="map")
def main(cfg: DictConfig) -> None:
    with exit_cleanly():
        from dxc.config.checked import checked
        from dxc.mapping.run import make_map
        from dxc.mapping.settings import MapSettings
        from dxc.report.map_page import print_map

        print_map(make_map(checked(MapSettings, resolved(cfg))))


if __name__ == "__main__":
    hide_command_line()
    main()
