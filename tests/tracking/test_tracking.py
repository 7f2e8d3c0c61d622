"""Runs in a real MLflow store: what is written, in how many calls, and how a run ends."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import threading
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from dxc.errors import Stopped, TrackingError
from dxc.masking import masked
from dxc.tracking.__main__ import links
from dxc.tracking.client import new_client
from dxc.tracking.places import OutsideError, Places
from dxc.tracking.reader import Reader
from dxc.tracking.record import Record
from dxc.tracking.run import start_run
from dxc.tracking.schema import version_message
from dxc.tracking.store import Store
from dxc.tracking.view import view_address, view_link, view_tag


@pytest.fixture
def uri(store_file: Path) -> str:
    return f"sqlite:///{store_file}"


def _start(uri: str, **options: object):
    return start_run(
        uri, **({"study": "s", "name": "a run", "params": {"model.kernel": 3}, "tags": {}} | options)
    )


def _artifact(client: MlflowClient, run_id: str, name: str) -> str:
    return Path(client.download_artifacts(run_id, name)).read_text()


def test_everything_is_there(uri: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.yaml").write_text("seed: 0")
    with _start(uri, tags={"dxc.trial": "0123456789ab"}) as run:
        run.log(
            {"accuracy": 0.9, "latency_ms": float("nan")},
            [("val_loss.fold1", 0.5, 1), ("val_loss.fold1", 0.4, 2)],
        )
        run.tag({"dxc.data": "d"})
        run.log_files(tmp_path / "out")
    client = MlflowClient(uri)
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "a run"
    assert stored.data.params == {"model.kernel": "3"}
    assert stored.data.metrics == {"accuracy": 0.9, "val_loss.fold1": 0.4}  # a missing value is missing
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "val_loss.fold1")] == [
        (1, 0.5),
        (2, 0.4),
    ]
    tags = stored.data.tags
    assert (tags["dxc.trial"], tags["dxc.data"]) == ("0123456789ab", "d")
    assert tags["mlflow.user"]
    assert _artifact(client, run.run_id, "config.yaml") == "seed: 0"
    assert client.get_experiment(run.experiment_id).name == "s"


def test_few_calls(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = MlflowClient.log_batch
    monkeypatch.setattr(
        MlflowClient, "log_batch", lambda self, *a, **k: (calls.append(k), original(self, *a, **k))[1]
    )
    params = {f"p{i}": i for i in range(150)}
    with _start(uri, params=params) as run:
        run.log({"accuracy": 1.0}, [("val_loss.fold1", i / 10, i) for i in range(1500)])
    assert len(calls) == 4  # 100 + 50 params, 1000 + 501 values
    client = MlflowClient(uri)
    assert len(client.get_run(run.run_id).data.params) == 150
    assert len(client.get_metric_history(run.run_id, "val_loss.fold1")) == 1500


def test_a_metric_without_unit_is_a_bug(uri: str) -> None:
    with pytest.raises(KeyError), _start(uri) as run:
        run.log({"acuracy": 0.9})


def test_failed_run(uri: str) -> None:
    with pytest.raises(ZeroDivisionError), _start(uri) as run:
        run.log({"accuracy": 0.5})
        1 / 0  # noqa: B018
    client = MlflowClient(uri)
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FAILED"
    assert stored.data.metrics == {"accuracy": 0.5}
    assert "ZeroDivisionError: division by zero" in _artifact(client, run.run_id, "traceback.txt")


@pytest.mark.parametrize("error", [OSError("no space left"), MlflowException("no artifacts")])
def test_a_failed_run_ends_without_its_traceback(
    uri: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(MlflowClient, "log_text", refuse)
    with pytest.raises(ZeroDivisionError), _start(uri) as run:
        1 / 0  # noqa: B018
    info = MlflowClient(uri).get_run(run.run_id).info
    assert info.status == "FAILED" and info.end_time


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_killed_run(uri: str, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=number.name), _start(uri) as run:
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    client = MlflowClient(uri)
    assert client.get_run(run.run_id).info.status == "KILLED"
    assert f"stopped by {number.name}" in _artifact(client, run.run_id, "traceback.txt")


def test_artifacts_lie_beside_the_database(tmp_path: Path) -> None:
    """The store is made by the first run that is written to it."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with _start(uri) as run:
        pass
    location = MlflowClient(uri).get_experiment(run.experiment_id).artifact_location
    assert location == (tmp_path / "mlartifacts/s").as_uri()


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("http://127.0.0.1:9", "cannot be used"),
        ("ftp://nowhere", "cannot be used"),
        ("sqlite:////proc/no/mlflow.db", "cannot be used"),
    ],
)
def test_stores_that_cannot_be_used(uri: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=says) as caught, _start(uri):
        pass
    assert uri in str(caught.value)
    assert "tracking.uri=sqlite:///mlflow.db" in str(caught.value)


def test_a_deleted_study_is_not_written_to(uri: str) -> None:
    with _start(uri) as run:
        pass
    MlflowClient(uri).delete_experiment(run.experiment_id)
    with pytest.raises(TrackingError, match="study 's' was deleted"), _start(uri):
        pass


def test_a_password_is_not_kept_with_the_runs(store_file: Path) -> None:
    uri = f"sqlite:///{store_file}"
    params = {"tracking.uri": "postgresql://somebody:secret@host:5432/runs", "source.root": "/a:b@c"}
    with start_run(uri, study="s", name="n", params=params, tags={}) as run:
        pass
    kept = MlflowClient(uri).get_run(run.run_id).data.params
    assert kept["tracking.uri"] == "postgresql://somebody:***@host:5432/runs"
    assert kept["source.root"] == "/a:b@c"
    assert masked("sqlite:////a/b.db") == "sqlite:////a/b.db"


@pytest.mark.parametrize(
    "uri", ["http://somebody:secret@127.0.0.1:9", "postgresql://somebody:secret@127.0.0.1:9/runs"]
)
def test_a_password_is_not_shown(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match="cannot be used") as caught:
        Reader(uri).studies()
    assert "somebody:***@127.0.0.1" in str(caught.value) and "secret" not in str(caught.value)


def test_a_password_is_not_shown_with_what_is_missing(store_file: Path) -> None:
    with start_run(f"sqlite:///{store_file}", study="s", name="n", params={}, tags={}):
        pass
    reader = Reader(f"sqlite:///{store_file}")
    reader.uri = "http://somebody:secret@host"
    with pytest.raises(TrackingError, match=r"no study 't' in the MLflow store http://somebody:\*\*\*@host;"):
        reader.study("t")
    message = version_message("postgresql://somebody:secret@host/runs", "no revision of MLflow's")
    assert message is not None and "secret" not in message and "somebody:***@host/runs" in message


def test_a_study_has_a_view_of_its_designs(store_file: Path) -> None:
    """The tag has the form in which MLflow's UI saves a view: zlib, base64, JSON."""
    store = Store(f"sqlite:///{store_file}", "first", patience_s=0)
    address = store.save_view(
        ["metrics.accuracy", "tags.dxc.rank"], order_by="metrics.accuracy", ascending=False
    )
    assert address.startswith(
        f"http://127.0.0.1:5000/#/experiments/{store.experiment_id}/runs?viewStateShareKey=designs"
    )
    tags = MlflowClient(store.uri).get_experiment(store.experiment_id).tags
    view = json.loads(tags["mlflow.sharedViewState.designs"])
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    assert state["selectedColumns"] == ["metrics.`accuracy`", "tags.`dxc.rank`"]
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`accuracy`", False)
    assert view_address("https://host/mlflow/", "7").startswith("https://host/mlflow/#/experiments/7/runs")


def test_charts_of_a_view() -> None:
    columns = [
        "attributes.Dataset",
        *(f"metrics.{name}" for name in ("f1", "accuracy", "onnx_mb", "energy_mj")),
    ]
    ((_, tag),) = view_tag(columns).items()
    state = json.loads(zlib.decompress(base64.b64decode(json.loads(tag)["state"].removeprefix("deflate;"))))
    assert state["orderByKey"] == "metrics.`f1`"
    charts = [(each["type"], each.get("xaxis", {}).get("key")) for each in state["compareRunCharts"]]
    # another trained metric is no cost; one that dxc does not declare may be
    assert charts == [("SCATTER", "onnx_mb"), ("SCATTER", "energy_mj"), *[("BAR", None)] * 4]
    assert [each["metricKey"] for each in state["compareRunCharts"][2:]] == [
        "f1",
        "accuracy",
        "onnx_mb",
        "energy_mj",
    ]
    ((_, tag),) = view_tag(["metrics.accuracy", "tags.dxc.rank"]).items()
    alone = json.loads(zlib.decompress(base64.b64decode(json.loads(tag)["state"].removeprefix("deflate;"))))
    assert "compareRunCharts" not in alone


def test_the_dataset_of_a_run_and_of_a_record(uri: str, tmp_path: Path) -> None:
    given = ("8 synthetic chips (seed 0)", "0123456789abcdef", {"seed": 0, "root": "http://u:hunter2@host/x"})
    with _start(uri) as run:
        run.log_dataset(*given)
    store = Store(uri, "s", patience_s=0)
    run_id = store.create("a trial", {})
    record = Record(tmp_path / "trial", name="a trial")
    record.log_dataset(*given)
    for _ in range(2):
        store.upload(run_id, Record.read(tmp_path / "trial"), files=tmp_path / "none", tags={})
    for each in (run.run_id, run_id):
        ((dataset, tags),) = [
            (x.dataset, x.tags) for x in MlflowClient(uri).get_run(each).inputs.dataset_inputs
        ]
        assert (dataset.name, dataset.digest) == given[:2]
        assert json.loads(dataset.source) == {"seed": 0, "root": "http://u:***@host/x"}
        assert [(tag.key, tag.value) for tag in tags] == [("mlflow.data.context", "training")]


@pytest.mark.parametrize(
    ("error", "state"), [(None, "finished"), (ZeroDivisionError(), "failed"), (KeyboardInterrupt(), "killed")]
)
def test_a_run_says_its_state(uri: str, error: BaseException | None, state: str) -> None:
    with contextlib.suppress(ZeroDivisionError, KeyboardInterrupt), _start(uri) as run:
        if error is not None:
            raise error
    stored = MlflowClient(uri).get_run(run.run_id)
    assert (stored.data.tags["dxc.state"], stored.info.status) == (state, state.upper())


def test_links_to_the_studies(store_file: Path) -> None:
    uri = f"sqlite:///{store_file}"
    ids = [Store(uri, name, patience_s=0).experiment_id for name in ("one", "second")]
    shown = [line.split() for line in links(uri, "http://127.0.0.1:5001")]
    assert [name for name, _ in shown] == ["second", "one"]
    assert [address for _, address in shown] == [
        f"http://127.0.0.1:5001/{view_link(each)}" for each in reversed(ids)
    ]
    note = MlflowClient(uri).get_experiment(ids[0]).tags["mlflow.note.content"]
    assert note.startswith(f"[Designs side by side]({view_link(ids[0])}) (Views > designs).")


@pytest.mark.parametrize(
    "address",
    [
        "file://{tmp_path}/mlartifacts/s/1",
        "{tmp_path}/mlruns/1",
        "file://{tmp_path}/named/1",
        "s3://bucket/runs/1",
    ],
)
def test_places_of_a_file(address: str, tmp_path: Path) -> None:
    places = Places.of(f"sqlite:///{tmp_path}/mlflow.db", [f"{tmp_path}/named", "s3://bucket/runs/"])
    address = address.format(tmp_path=tmp_path)
    assert str(places.of_run("r", address)) == address.removeprefix("file://")


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc",
        "/etc",
        "file://{tmp_path}/mlartifacts/../x",
        "file://{tmp_path}/mlartifacts/%2e%2e/x",
        "file://{tmp_path}/mlartifacts_of_another",
        "file://{tmp_path}",
        "file://host{tmp_path}/mlartifacts/1",
        "mlartifacts/1",
        "http://127.0.0.1/mlartifacts",
        "ftp://u:hunter2@127.0.0.1/mlartifacts",
        "s3://bucket/runs/../other",
        "s3://bucket/runs_of_another",
        "mlflow-artifacts:/1",
        "",
    ],
)
def test_places_that_are_none_of_the_stores(address: str, tmp_path: Path) -> None:
    places = Places.of(f"sqlite:///{tmp_path}/mlflow.db", ["s3://bucket/runs"])
    with pytest.raises(OutsideError, match="its artifact address lies outside the store") as caught:
        places.of_run("r", address.format(tmp_path=tmp_path))
    assert "hunter2" not in str(caught.value)


def test_places_of_a_server(tmp_path: Path) -> None:
    places = Places.of("http://u:p@host:5000/", [])
    for address in ("mlflow-artifacts:/1/r/artifacts", "mlflow-artifacts://host:5000/1"):
        assert places.of_run("r", address) == address
    for address in (
        "mlflow-artifacts://other:5000/1",
        "mlflow-artifacts:/1/../../runs",
        "mlflow-artifacts:/1?x",
        "file:///srv/runs",
        "http://host:5000/1",
    ):
        with pytest.raises(OutsideError):
            places.of_run("r", address)


def test_nothing_is_put_where_a_store_says_it_keeps_files(store_file: Path, tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{store_file}")
    client.create_experiment("s", artifact_location=(tmp_path / "victim").as_uri())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("seed: 0")
    with pytest.raises(OutsideError), _start(client.tracking_uri) as run:
        run.log_files(tmp_path / "out")
    assert not (tmp_path / "victim").exists()
    with _start(client.tracking_uri, artifacts=[str(tmp_path / "victim")]) as run:
        run.log_files(tmp_path / "out")
    assert list((tmp_path / "victim").rglob("config.yaml"))


def test_a_login_goes_to_the_server_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append((self.path, self.headers["Authorization"]))
            self.send_error(500)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None: ...

    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        client = new_client(f"http://somebody:hun/ter%402@{address}")
        with pytest.raises(MlflowException) as caught:
            client.get_run("0" * 32)
        server.shutdown()
    assert client.tracking_uri == f"http://{address}" and "hun/ter" not in str(caught.value)
    assert {given for _, given in heard} == {f"Basic {base64.b64encode(b'somebody:hun/ter@2').decode()}"}
