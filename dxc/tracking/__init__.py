"""Runs in MLflow. The only room that imports mlflow.

    run        a run that is written while it is computed
    record     what one trial says, on disk first: a server that is away loses nothing
    store      one study in a store, written with patience
    reader     what others have written; reading changes nothing
    patience   calls that are tried again, and the runs that come back
    places     where a store keeps files: addresses outside of it are refused
    schema     whether a database is one of this MLflow's, and what to do if not
    view       the saved view of a study in MLflow's UI
    client     MLflow's client: opening a store, logging in few calls

One run = one configuration; experiment = study.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported first
