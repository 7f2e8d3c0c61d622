"""What `make setup` installs: dxc is found from any folder, by whatever process a search starts."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dxc.config.compose import PROJECT_ROOT


def test_dxc_and_its_plugin_are_found_from_any_folder(tmp_path: Path) -> None:
    """-I: neither the working folder nor PYTHONPATH is searched."""
    code = (
        "import dxc; from hydra.core.plugins import Plugins; from hydra.plugins.sweeper import Sweeper\n"
        "print(dxc.__file__, *(each.__module__ for each in Plugins.instance().discover(Sweeper)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, (
        f"dxc is not installed in {sys.executable} (make setup does it): {done.stderr}"
    )
    module, *sweepers = done.stdout.split()
    assert Path(module) == PROJECT_ROOT / "dxc" / "__init__.py"
    assert "hydra_plugins.nni_sweeper.sweeper" in sweepers


def test_package_data_is_declared() -> None:
    settings = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    declared = {
        path for pattern in settings["package-data"]["dxc"] for path in (PROJECT_ROOT / "dxc").glob(pattern)
    }
    data = {
        path
        for path in (PROJECT_ROOT / "dxc").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path for path in data if path.suffix != ".py"} <= declared


@pytest.mark.parametrize("folder", ["measure", "profiling"])
def test_nothing_beside_a_worker_shadows_the_standard_library(folder: str) -> None:
    """Python searches the folder of a script that it runs before its own modules."""
    beside = {path.stem for path in (PROJECT_ROOT / "dxc" / "hardware" / folder).iterdir()}
    assert "worker" in beside
    assert not beside & sys.stdlib_module_names
