"""Map the crossings of a watershed: `python map.py run=RUN_ID dem=dem.tif ... out=crossings.gpkg` (see --help)."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

import dxc.config.compose  # noqa: F401  registers the resolvers that conf/ uses
from dxc.config.hidden import hide_command_line
from dxc.errors import exit_cleanly


@hydra.main(version_base="1.3", config_path="conf", config_name="map")
def main(cfg: DictConfig) -> None:
    with exit_cleanly():
        from dxc.mapping.run import make_map
        from dxc.mapping.several import asked_maps, make_maps, require_all
        from dxc.report.map_page import print_map, print_maps

        asked = asked_maps(cfg)
        if len(asked) == 1:
            print_map(make_map(asked[0]))
        else:
            maps = make_maps(asked)
            print_maps(maps)
            require_all(maps)


if __name__ == "__main__":
    hide_command_line()
    main()
