"""Makes a synthetic watershed to try prepare.py and map.py with: `python -m dxc.synthetic FOLDER` (see --help)."""

from __future__ import annotations

import argparse
from pathlib import Path

from dxc.errors import exit_cleanly
from dxc.synthetic.source import REGIONS, make_region


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dxc.synthetic",
        description="Writes dem.tif, photo.tif, crossings.gpkg, roads.gpkg and streams.gpkg of a watershed that is "
        "made. Another seed gives another watershed.",
    )
    parser.add_argument("folder", type=Path, help="a new folder")
    kinds = {spec.name: spec for spec in REGIONS}
    parser.add_argument("--region", choices=kinds, default="NE", help="the kind of country (default: NE)")
    parser.add_argument(
        "--crossings", type=int, default=30, help="how many (default: 30); each needs about 13 ha"
    )
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with exit_cleanly():
        given.folder.parent.mkdir(parents=True, exist_ok=True)
        files = make_region(kinds[given.region], given.folder, crossings=given.crossings, seed=given.seed)
        print(f"dem={files.dem} photo={files.photo} roads={files.roads} crossings={files.crossings}")


if __name__ == "__main__":
    main()
