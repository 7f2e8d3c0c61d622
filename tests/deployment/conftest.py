"""A small study that was trained once, for whoever deploys it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Once, copy_study
from tests.deployment.studies import train


@pytest.fixture(scope="session")
def trained_study(once: Once) -> Path:
    """A folder with three finished runs; for reading."""
    return once("deployed-study", train)


@pytest.fixture
def study(trained_study: Path, tmp_path: Path) -> Path:
    """A folder with three finished runs that no device has proved."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()  # MLflow keeps where the files of a run lie, and copies lie elsewhere
    return copy_study(trained_study, tmp_path / "study")
