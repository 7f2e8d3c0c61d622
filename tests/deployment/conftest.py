"""A small study that was trained once, for whoever deploys it."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from dxc.deployment.deployment import Deployment
from tests.conftest import Once, copy_study
from tests.deployment.studies import deployed, steady_latencies, train

RESULT = "result.pickle"


@pytest.fixture(scope="session")
def trained_study(once: Once) -> Path:
    """A folder with three finished runs; for reading."""
    return once("deployed-study", train)


@pytest.fixture
def study(trained_study: Path, tmp_path: Path) -> Path:
    """A folder with three finished runs that no device has proved."""
    return _copied(trained_study, tmp_path / "study")


@pytest.fixture(scope="session")
def proved_study(trained_study: Path, once: Once) -> Path:
    """The same after this machine has proved all three, each image once a repeat; for reading. The result is beside."""

    def prove(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            steady_latencies(patch)
            result = deployed(_copied(trained_study, folder))
        (folder / RESULT).write_bytes(pickle.dumps(result))

    return once("proved-study", prove)


@pytest.fixture
def proved(proved_study: Path, tmp_path: Path) -> tuple[Path, Deployment]:
    """A folder with three runs that this machine has proved, and the result of that."""
    study = _copied(proved_study, tmp_path / "study")
    result: Deployment = pickle.loads((study / RESULT).read_bytes())
    return study, replace(result, folder=study / "reports" / "small")


def _copied(made: Path, folder: Path) -> Path:
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()  # MLflow keeps where the files of a run lie, and copies lie elsewhere
    return copy_study(made, folder)
