"""Tracking of runs in MLflow. No other room imports mlflow.

    run        a run that is written while it is computed
    record     a run on disk, which is uploaded later, so that nothing is lost while the server is away
    store      one study in a store, for writing; calls are repeated
    reader     reads a store without changing it
    patience   repeats calls to a store that does not answer
    places     where a store keeps its files; other addresses are refused
    schema     checks that a database fits the installed MLflow
    view       the saved view of a study in MLflow's UI
    client     opens a store, and logs in few calls

One run is one configuration. An experiment is a study.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # mlflow reads it on import
