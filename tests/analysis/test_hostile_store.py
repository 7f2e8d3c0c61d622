"""analyze.py on a store that somebody hostile can write to: nothing outside its own folders, no connection."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from omegaconf import OmegaConf
from onnx import TensorProto, helper

from dxc.config.compose import PROJECT_ROOT
from dxc.config.identity import design_hash, trial_hash
from tests.analysis.test_reproduce import _config

BOMB = "a: &a [x, x]\n" + "".join(
    f"{here}: &{here} [*{there}, *{there}, *{there}, *{there}, *{there}, *{there}, *{there}, *{there}]\n"
    for there, here in zip("abcdefghi", "bcdefghij", strict=True)
)
# Every process of the analysis imports it: what it connects to, and what it opens to read among the victim's files.
AUDIT = """
import sys

def heard(event, arguments, log={log!r}, victim={victim!r}):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        text = repr(arguments)
    elif event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(victim):
        text = arguments[0]
    else:
        return
    with open(log, "a") as file:
        file.write(event + " " + text + "\\n")

sys.addaudithook(heard)
"""
CANARY = "hostile-canary"


class Hostile:
    """A directory with a store, and beside it what nobody may touch."""

    def __init__(self, store_file: Path) -> None:
        self.root = store_file.parent
        self.uri = f"sqlite:///{store_file}"
        self.file = store_file
        self.victim = self.root / "victim"
        (self.victim / "folder").mkdir(parents=True)
        (self.victim / "folder" / "kept.txt").write_text("kept")
        for name in ("config.yaml", "model.onnx", "predictions.parquet"):
            (self.victim / name).write_text(CANARY)
        self.client = MlflowClient(self.uri)
        self.artifacts = self.root / "mlartifacts" / "s"
        self.experiment = self.client.create_experiment("s", artifact_location=self.artifacts.as_uri())
        self.count = 0

    def run(
        self,
        accuracy: float,
        *,
        name: str = "",
        config: str | None = None,
        tags: Mapping[str, str] | None = None,
        network: bytes | None = None,
    ) -> str:
        """A finished run on the front: the more accurate, the larger."""
        self.count += 1
        own = _config(f"seed={self.count}")
        marks = {
            "dxc.trial": trial_hash(own),
            "dxc.design": design_hash(_config(f"trainer.max_epochs={self.count}")),
            "hardware": "cpu",
            "data": "7ch",
        } | dict(tags or {})
        info = self.client.create_run(self.experiment, run_name=name or f"run {self.count}").info
        costs = {"accuracy": accuracy, "latency_ms": 100 * accuracy, "onnx_mb": 10 * accuracy}
        self.client.log_batch(
            info.run_id,
            [Metric(key, value, 0, 0) for key, value in costs.items()],
            tags=[RunTag(key, value) for key, value in marks.items()],
        )
        folder = self.artifacts / info.run_id / "artifacts"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(own) if config is None else config)
        (folder / "model.onnx").write_bytes(_network() if network is None else network)
        predictions = pd.DataFrame({"region": "NE", "name": [f"c{n}" for n in range(20)]})
        right = np.arange(20) < round(20 * accuracy)
        predictions.assign(label=1, fold="fold1", probability=np.where(right, 0.9, 0.1)).to_parquet(
            folder / "predictions.parquet"
        )
        self.client.set_terminated(info.run_id)
        return info.run_id

    def sql(self, statement: str, *values: str) -> None:
        with closing(sqlite3.connect(self.file)) as database, database:
            database.execute("PRAGMA foreign_keys = OFF")
            database.execute(statement, values)

    def analyze(self, *overrides: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """(what analyze.py said, what it connected to and read of the victim's)."""
        log, hooks = self.root.parent / "heard.log", self.root.parent / "hooks"
        log.unlink(missing_ok=True)
        hooks.mkdir(exist_ok=True)
        (hooks / "sitecustomize.py").write_text(AUDIT.format(log=str(log), victim=str(self.victim)))
        done = subprocess.run(
            [
                *(sys.executable, str(PROJECT_ROOT / "analyze.py"), "study=s", f"tracking.uri={self.uri}"),
                *(f"out={self.root}/reports", f"cache_dir={self.root}/cache", *overrides),
            ],
            cwd=self.root,
            env=os.environ | {"PYTHONPATH": str(hooks), "DXC_CANARY": CANARY},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return done, log.read_text().splitlines() if log.exists() else []

    def snapshot(self) -> dict[str, bytes | None]:
        """Every file that an analysis may not change, and every folder."""
        own = ("reports", "cache", "mlflow.db")
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if not name.startswith(own):
                found[name] = path.read_bytes() if path.is_file() else None
        return found


def _network() -> bytes:
    """A convolution for images of 7 channels."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2, 7, 3, 3], np.zeros(126, dtype="float32"))
    node = helper.make_node("Conv", ["image", "w"], ["y"], kernel_shape=[3, 3])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 7, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2, 14, 14])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


@pytest.fixture
def hostile(tmp_path: Path, _new_store: Path) -> Hostile:
    (tmp_path / "surroundings").mkdir()
    return Hostile(Path(shutil.copy(_new_store, tmp_path / "surroundings")))


def _with_hardware(**changes: object) -> str:
    config = _config()
    return OmegaConf.to_yaml({**config, "hardware": {**config["hardware"], **changes}})


@pytest.mark.slow
def test_a_hostile_store(hostile: Hostile) -> None:
    """Good runs are analysed, and of the others nothing is obeyed."""
    victim = hostile.victim
    good = [hostile.run(0.80, name="good one"), hostile.run(0.70, name="good two")]
    # tags that become names of folders
    hostile.run(0.81, name="absolute", tags={"dxc.trial": str(victim / "folder")})
    upwards = "../../../victim/folder"
    hostile.run(0.82, name="upwards", tags={"dxc.trial": upwards, "dxc.design": upwards})
    # configurations
    hostile.run(0.97, name="bomb", config=BOMB)
    machine = _with_hardware(
        host="-oProxyCommand=touch${IFS}" + str(victim / "ssh"),
        python=f"touch {victim}/python;",
        packages_url="http://127.0.0.1:9",
        packages_dir=str(victim / "packages"),
        predictors=["cortexA76cpu_tflite21"],
    )
    hostile.run(0.85, name="machine", config=machine)
    hostile.run(0.87, name="no network", network=b"no network")
    # addresses of artifacts
    addresses = {
        0.88: victim.as_uri(),
        0.89: str(victim),
        0.90: f"{hostile.artifacts.as_uri()}/../../victim",
        0.91: "http://127.0.0.1:9/artifacts",
        0.92: "ftp://127.0.0.1:9/artifacts",
        0.93: "s3://bucket/artifacts",
        0.94: "mlflow-artifacts://127.0.0.1:9/1",
        0.95: "file://127.0.0.1/etc",
    }
    for accuracy, address in addresses.items():
        run_id = hostile.run(accuracy, name=f"at {accuracy}")
        hostile.sql("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", address, run_id)
    linked = hostile.run(0.96, name="linked")
    for path in (hostile.artifacts / linked / "artifacts").iterdir():
        path.unlink()
        path.symlink_to(victim / path.name)
    # an id that is no id
    odd = hostile.run(0.60, name="odd id")
    for table in ("runs", "tags", "metrics", "latest_metrics", "params"):
        hostile.sql(f"UPDATE {table} SET run_uuid = ? WHERE run_uuid = ?", "../../../victim/odd", odd)
    # where the analysis itself would be kept
    hostile.sql("UPDATE experiments SET artifact_location = ? WHERE name = 's'", victim.as_uri())

    before = hostile.snapshot()
    done, heard = hostile.analyze("profile=torch", "tag=true", "choose.by=accuracy")
    assert done.returncode == 0, done.stderr
    assert hostile.snapshot() == before
    assert heard == []

    said = done.stdout + done.stderr
    assert "Traceback" not in said and CANARY not in said
    report = hostile.root / "reports" / "s"
    designs = pd.read_csv(report / "designs.csv") if (report / "designs.csv").exists() else None
    front = pd.read_csv(report / "front.csv") if designs is None else designs
    assert len(front) == hostile.count - 1  # all are on it but the one whose id is none
    assert {"good one", "good two"} <= set(front["design"].str.replace(r" \[.*", "", regex=True))
    profiled = {path.name for path in (report / "profiles").iterdir()}
    trials = {hostile.client.get_run(run_id).data.tags["dxc.trial"] for run_id in good}
    assert trials <= profiled and all(re.fullmatch(r"[0-9a-f]{12}|[0-9a-f]{32}", name) for name in profiled)
    assert len(profiled) == 2 + 2 + 3  # good, tags, configurations; the rest has no file that may be read
    for run_id in good:  # the others are compared as well
        assert hostile.client.get_run(run_id).data.tags["dxc.front"] == "true"
    answer = said + (report / "answer.txt").read_text()
    assert "config.yaml cannot be read: line 1 has an alias or anchor" in answer
    assert "its artifact address lies outside the store" in answer
    assert "its id '../../../victim/odd' is not 32 hexadecimal digits" in said
    assert "its tag dxc.trial is ignored: '../../../victim/folder' is not 12 hexadecimal digits" in said
    assert "not kept in MLflow: " in said


def _interpolated() -> str:
    config = _config("source=chips", "source.root=here")
    text = OmegaConf.to_yaml(config)
    assert text.count("root: here") == 1
    return text.replace("root: here", "root: ${oc.env:DXC_CANARY}")


@pytest.mark.long
def test_an_interpolation_is_printed_and_not_resolved(hostile: Hostile) -> None:
    """Neither by the analysis nor by the command that it prints."""
    hostile.run(
        0.9, config=_interpolated(), tags={"dxc.trial": trial_hash(_config("source=chips", "source.root=x"))}
    )
    done, _ = hostile.analyze("log=false")
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout
    assert r"""'source.root='"'"'\${oc.env:DXC_CANARY}'"'"''""" in done.stdout
