"""What is masked in addresses and texts, and how a secret stays out of Hydra's files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dxc.config.compose import PROJECT_ROOT
from dxc.config.hidden import KeepSecrets, hide_arguments
from dxc.errors import ConfigError
from dxc.masking import for_link, login_of, masked, masked_tree
from dxc.tracking.record import Record
from dxc.tracking.view import view_address


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://somebody:secret@host:5432/runs", "postgresql://somebody:***@host:5432/runs"),
        ("postgresql+psycopg2://u:p/w@h/runs", "postgresql+psycopg2://u:***@h/runs"),
        ("mysql+pymysql://u:p@w:?#'@h/runs", "mysql+pymysql://u:***@h/runs"),
        ("postgresql://u:p w@h/runs", "postgresql://u:***@h/runs"),
        ("https://TOKEN@host/mlflow", "https://***@host/mlflow"),
        ("http://host:5000/x?password=abc&y=2", "http://host:5000/x?password=***&y=2"),
        ("postgresql://h/runs?sslpassword=zz&sslmode=require", "postgresql://h/runs?sslpassword=***&sslmode=require"),
        ("https://h/x?token=a&sig=b&api_key=c&access_key=d", "https://h/x?token=***&sig=***&api_key=***&access_key=***"),
        ("s3://b/k?X-Amz-Signature=a&AWSAccessKeyId=b", "s3://b/k?X-Amz-Signature=***&AWSAccessKeyId=***"),
        ("mssql://h/?odbc_connect=PWD%3Dx", "mssql://h/?odbc_connect=***"),
        ("refused: host=h password=abc user=u", "refused: host=h password=*** user=u"),
        ("first http://u:p@h/a, then http://v:q@i", "first http://u:***@h/a, then http://v:***@i"),
        # no secrets
        ("sqlite:////a@b/c.db", "sqlite:////a@b/c.db"),
        ("file:///a:b@c", "file:///a:b@c"),
        ("/a:b@c", "/a:b@c"),
        ("http://host:5000/path?x=1", "http://host:5000/path?x=1"),
        ("write to a@b.org about http://h", "write to a@b.org about http://h"),
    ],
)  # fmt: skip
def test_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown


def test_a_driver_repeats_a_password_by_itself() -> None:
    address = "postgresql://u:hunter%2F2@h/runs"
    said = masked(f"login 'hunter/2' (hunter%2F2) to {address} failed", address)
    assert said == "login '***' (***) to postgresql://u:***@h/runs failed"


def test_every_text_of_a_tree() -> None:
    tree = {"tracking": {"uri": "http://u:p@h"}, "list": ["http://u:p@h", 1], "n": None}
    assert masked_tree(tree) == {
        "tracking": {"uri": "http://u:***@h"},
        "list": ["http://u:***@h", 1],
        "n": None,
    }


def test_a_login() -> None:
    assert login_of("http://u:p%2Fw@h:5000/x") == ("u", "p/w", "http://h:5000/x")
    assert login_of("http://u:p/w@h:5000/x") == ("u", "p/w", "http://h:5000/x")
    assert login_of("http://h:5000/a@b") is None and login_of("sqlite:////a@b.db") is None


def test_links_show_no_login() -> None:
    assert for_link("http://u:p/w@h:5000/mlflow/?token=x") == "http://h:5000/mlflow"
    address = view_address("https://somebody:secret@host/mlflow/", "7")
    assert address.startswith("https://host/mlflow/#/experiments/7/runs")


def test_a_record_on_disk(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.write(reason="MlflowException: http://u:hunter2@h/api failed", attempts=1)
    record.tag({"dxc.reason": "http://u:hunter2@h"})
    with record.opened("", study="s", name="n", params={"tracking.uri": "http://u:hunter2@h"}, tags={}):
        pass
    assert "hunter2" not in (tmp_path / "record.json").read_text()
    assert record.content["params"] == {"tracking.uri": "http://u:***@h"}


def test_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    given = ["-m", "tracking.uri=postgresql://u:p/w@h/runs", "seed=3", "+a.b='http://u:p,w@h'"]
    assert hide_arguments(given) == [
        "-m",
        "tracking.uri=${oc.env:DXC_TRACKING_URI}",
        "seed=3",
        "+a.b=${oc.env:DXC_A_B}",
    ]
    assert os.environ == {"DXC_TRACKING_URI": "postgresql://u:p/w@h/runs", "DXC_A_B": "http://u:p,w@h"}
    with pytest.raises(ConfigError, match="tracking.uri holds a secret and has several values"):
        hide_arguments(["tracking.uri=http://u:p@h,http://v:q@i"])


def test_a_secret_in_a_configuration_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DXC_TRACKING_URI", raising=False)
    overrides = {"hydra": {"overrides": {"hydra": ["hydra.sweep.dir=multirun/${study}"], "task": []}}}
    config = OmegaConf.create({"study": "s", "tracking": {"uri": "http://u:hunter2@h"}, **overrides})
    KeepSecrets().on_multirun_start(config)
    assert "hunter2" not in OmegaConf.to_yaml(config)
    assert config.tracking.uri == "http://u:hunter2@h"  # in the environment
    assert OmegaConf.to_container(config.hydra.overrides.hydra) == [
        "hydra.sweep.dir=multirun/${study}",
        "tracking.uri=${oc.env:DXC_TRACKING_URI}",
    ]
    monkeypatch.delenv("DXC_TRACKING_URI")


@pytest.mark.long
@pytest.mark.parametrize("sweep", [[], ["seed=1,2", "hydra.sweep.dir={tmp_path}/out", "-m"]])
def test_nothing_of_a_password_is_written_or_shown(sweep: list[str], tmp_path: Path) -> None:
    """train.py with a server that does not answer: its error, Hydra's files, the log."""
    done = subprocess.run(
        [
            *(sys.executable, "train.py", "tracking.uri=http://somebody:hunter2@127.0.0.1:9/mlflow"),
            *("source.chips=40", "data=3ch", f"cache_dir={tmp_path}/cache", f"hydra.run.dir={tmp_path}/out"),
            *(each.format(tmp_path=tmp_path) for each in sweep),
        ],
        cwd=PROJECT_ROOT,
        env=os.environ | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert (
        "tracking.uri: the MLflow store http://somebody:***@127.0.0.1:9/mlflow cannot be used" in done.stderr
    )
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in written}
    assert {"config.yaml", "overrides.yaml", "hydra.yaml"} <= names
    assert ("multirun.yaml" in names) == bool(sweep)
    assert not [path for path in written if b"hunter2" in path.read_bytes()]
    assert "hunter2" not in done.stdout + done.stderr
    (config, *_) = [path for path in written if path.name == "config.yaml" and path.parent.name == ".hydra"]
    assert "uri: ${oc.env:DXC_TRACKING_URI}" in config.read_text()
