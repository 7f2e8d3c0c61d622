"""The services themselves: what the other tests of this folder build on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import psycopg2
import pytest
from mlflow import MlflowClient

from tests.slurm import services

pytestmark = pytest.mark.slurm

APP = """
import os
from pathlib import Path

import hydra

@hydra.main(version_base=None, config_path=None)
def main(config):
    Path(f"square of {config.number}").write_text(f"{config.number ** 2} {os.environ['SLURM_JOB_PARTITION']}")

main()
"""


def _run(cluster: Mapping[str, str], *command: object, cwd: Path) -> str:
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=os.environ | dict(cluster),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def _wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def _start_sleeper(cluster: Mapping[str, str], folder: Path) -> tuple[str, psutil.Process]:
    """A job that sleeps on; returns its id and its shell once it runs."""
    script = "echo $$ > pid.part && mv pid.part pid; while true; do sleep 1; done"
    job = _run(cluster, "sbatch", "--parsable", f"--wrap={script}", cwd=folder)
    _wait_for((folder / "pid").exists)
    return job, psutil.Process(int((folder / "pid").read_text()))


def test_a_job_runs(cluster: dict[str, str], tmp_path: Path) -> None:
    _run(cluster, "sbatch", "--wait", "--mem=1G", "--wrap=echo $SLURM_JOB_PARTITION > here", cwd=tmp_path)
    assert (tmp_path / "here").read_text() == "debug\n"


def test_scancel_ends_a_job(cluster: dict[str, str], tmp_path: Path) -> None:
    job, process = _start_sleeper(cluster, tmp_path)
    assert _run(cluster, "squeue", "--noheader", "--format=%i %T", cwd=tmp_path) == f"{job} RUNNING"
    _run(cluster, "scancel", job, cwd=tmp_path)
    _wait_for(lambda: not process.is_running())


def test_nothing_is_left(services_folder: Path, tmp_path: Path) -> None:
    """Not even a job that nobody can cancel, where the body raises."""
    with pytest.raises(ZeroDivisionError), services.slurm(services_folder / "raises") as env:
        _start_sleeper(env, tmp_path)
        processes = {process.name(): process for process in services.processes_of(env)}
        assert {"munged", "slurmctld", "slurmd", "slurmstepd", "slurm_script"} <= set(processes)
        processes["slurmctld"].kill()
        raise ZeroDivisionError
    assert services.processes_of(env) == []


def test_hydra_sweeps_on_slurm(cluster: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    options = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=debug", "hydra.sweep.dir=sweep"]
    _run(
        cluster, sys.executable, "app.py", "-m", "+number=2,3", "hydra.job.chdir=true", *options, cwd=tmp_path
    )
    assert (tmp_path / "sweep/0/square of 2").read_text() == "4 debug"
    assert (tmp_path / "sweep/1/square of 3").read_text() == "9 debug"


def test_a_run_is_in_the_database(store: str, database: str, tmp_path: Path) -> None:
    client = MlflowClient(store)
    run = client.create_run(client.create_experiment("services"))
    client.log_param(run.info.run_id, "kernel", 3)
    client.log_metric(run.info.run_id, "accuracy", 0.9)
    (tmp_path / "network.bin").write_bytes(bytes(range(256)) * 1000)
    client.log_artifact(run.info.run_id, str(tmp_path / "network.bin"))
    client.set_terminated(run.info.run_id)

    with psycopg2.connect(database.replace("+psycopg2", "")) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT status, p.value, m.value FROM runs"
            " JOIN params p USING (run_uuid) JOIN latest_metrics m USING (run_uuid) WHERE run_uuid = %s",
            [run.info.run_id],
        )
        assert cursor.fetchall() == [("FINISHED", "3", 0.9)]
    fetched = client.download_artifacts(run.info.run_id, "network.bin", str(tmp_path / "fetched"))
    assert Path(fetched).read_bytes() == (tmp_path / "network.bin").read_bytes()
