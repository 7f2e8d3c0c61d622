"""Checks that a database has the tables of the installed MLflow."""

from __future__ import annotations

import re
from pathlib import Path

from dxc.errors import TrackingError, first_line
from dxc.masking import masked


def require_tables(uri: str) -> None:
    """Raise TrackingError unless a database exists and has the tables of this MLflow.

    MLflow itself would create a missing SQLite file, and migrate the tables of an older MLflow without asking.
    Addresses that are not databases are not checked.
    """
    from alembic.runtime.migration import MigrationContext
    from mlflow.store.db.db_types import DATABASE_ENGINES
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import SQLAlchemyError

    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in DATABASE_ENGINES:
        return
    nothing = (
        f"there is no MLflow store at {masked(uri)}\n"
        "Train or search first, or say where the runs are: tracking.uri=ADDRESS"
    )
    try:
        if scheme == "sqlite" and not Path(make_url(uri).database or "").is_file():
            raise TrackingError(nothing)
        engine = create_engine(uri)
        try:
            with engine.connect() as connection:
                version = MigrationContext.configure(connection).get_current_revision()
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError) as error:  # a server that is away, another kind of file, no driver
        raise TrackingError(store_message(uri, error)) from error
    if version is None:
        raise TrackingError(nothing)
    if (message := version_message(uri, version)) is not None:
        raise TrackingError(message)


def version_message(uri: str, version: str) -> str | None:
    """The error message for a database whose tables do not fit the installed MLflow; None if they fit.

    Args:
        uri: address of the database.
        version: of the tables, an alembic revision.
    """
    import mlflow
    from alembic.script import ScriptDirectory

    uri = masked(uri)
    known = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    if version in known.get_heads():
        return None
    if version in {each.revision for each in known.walk_revisions()}:
        return (
            f"the tables of the MLflow store {uri} were made by an older MLflow than {mlflow.__version__}\n"
            f"Keep a copy of the database, then bring them up to date: mlflow db upgrade {uri}"
        )
    return (
        f"the tables of the MLflow store {uri} were made by a newer MLflow than {mlflow.__version__}\n"
        "Install that one (pip install --upgrade mlflow), or read through its server: tracking.uri=http://HOST:5000"
    )


def store_message(uri: str, error: Exception) -> str:
    reason = masked(first_line(error), uri)  # drivers repeat the address
    if outdated := re.search(r"out-of-date database schema \(found version (\w+)", reason):
        return version_message(uri, outdated[1]) or reason
    return (
        f"tracking.uri: the MLflow store {masked(uri)} cannot be used: {reason}\n"
        "Check the address and that its server runs, or keep runs in a file: tracking.uri=sqlite:///mlflow.db"
    )
