"""The GeoPackage in QGIS itself, where its Python is installed (Debian: apt install python3-qgis)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from dxc.geo.crossing_layers import AREA, LINES, POINTS, write_layers
from tests.geo.test_crossing_layers import some_layers

PYTHON = "/usr/bin/python3"
LOOK = """
import json, os, sys
from qgis.core import QgsApplication, QgsVectorLayer
app = QgsApplication([], False)
app.initQgis()
found = {}
for name in sys.argv[2:]:
    layer = QgsVectorLayer(f"{sys.argv[1]}|layername={name}", name, "ogr")
    items = layer.renderer().legendSymbolItems()
    colour = items[0].symbol().color().name()
    found[name] = [layer.featureCount(), layer.crs().authid(), layer.renderer().type(), len(items), colour]
print(json.dumps(found), flush=True)
os._exit(0)  # QGIS crashes where layers outlive it
"""


def _has_qgis() -> bool:
    try:
        return (
            subprocess.run([PYTHON, "-c", "import qgis.core"], capture_output=True, timeout=60).returncode
            == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.mark.slow
@pytest.mark.skipif(not _has_qgis(), reason="QGIS is not installed: apt install python3-qgis")
def test_layers_open_styled(tmp_path: Path) -> None:
    path = tmp_path / "crossings.gpkg"
    write_layers(path, *some_layers(), {})
    done = subprocess.run(
        [PYTHON, "-c", LOOK, str(path), POINTS, LINES, AREA],
        capture_output=True, text=True, timeout=120, env={**os.environ, "QT_QPA_PLATFORM": "offscreen"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        POINTS: [2, "EPSG:26915", "graduatedSymbol", 4, "#f0e442"],
        LINES: [1, "EPSG:26915", "singleSymbol", 1, "#0072b2"],
        AREA: [1, "EPSG:26915", "singleSymbol", 1, "#ffffff"],
    }
    assert "may only be partially supported" not in done.stderr
