"""One Slurm cluster and one MLflow server with PostgreSQL behind it for all tests of this folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm import services


@pytest.fixture(scope="session")
def services_folder() -> Iterator[Path]:
    """Not in pytest's folder: only root may enter that one, and PostgreSQL is not root."""
    if reason := services.missing():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="dxc-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="session")
def cluster(services_folder: Path) -> Iterator[dict[str, str]]:
    """What a client of the cluster needs in its environment."""
    with services.slurm(services_folder / "slurm") as env:
        yield env


@pytest.fixture(scope="session")
def database(services_folder: Path) -> Iterator[str]:
    """The SQLAlchemy URI of the store's database."""
    with services.postgres(services_folder / "postgres") as uri:
        yield uri


@pytest.fixture(scope="session")
def store(services_folder: Path, database: str) -> Iterator[str]:
    """The URL of the MLflow server."""
    with services.mlflow_server(services_folder / "mlflow", database) as url:
        yield url
