"""scale.py on a Slurm cluster: one task a device, and what the cluster does not have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from dxc.config.compose import PROJECT_ROOT

pytestmark = pytest.mark.slurm


def test_two_tasks_of_one_job(cluster: dict[str, str], tmp_path: Path) -> None:
    """The cluster has one node with two cores: two nodes are absent, and that is no error."""
    command = [
        *(sys.executable, "scale.py", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=debug"),
        *("model=resnet8", "source.classes=4", "data.size=16", "batch=4", "accelerator=cpu", "devices=1,2"),
        *("nodes=1,2", "minutes=0.03", "measured_seconds=0.5", "warmup_steps=2", "tracking.log=false"),
        *(f"cache_dir={tmp_path}/cache", f"out={tmp_path}/reports", f"hydra.run.dir={tmp_path}/run"),
    ]
    env = {**os.environ, **cluster}
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pd.read_csv(tmp_path / "reports" / "scale" / "scaling.csv")
    one_node = rows[rows["nodes"] == 1].set_index("devices")
    assert one_node["state"].to_dict() == {1: "measured", 2: "measured"}
    assert one_node.loc[2, "communication_share"] > 0
    two_nodes = rows[rows["nodes"] == 2]
    assert set(two_nodes["state"]) == {"absent"}
    assert two_nodes["remark"].str.contains("Slurm does not take the job").all()
    # one job for each run, of as many tasks as devices
    tasks = sorted(
        len(list(each.glob("*_log.err"))) for each in (tmp_path / "cache" / "scaling").glob("*/slurm")
    )
    assert tasks == [0, 0, 1, 2]
