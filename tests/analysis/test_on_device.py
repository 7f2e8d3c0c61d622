"""Designs on their device: a store of runs that were deployed, metered and not."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient

from dxc.analysis.analyze import analyze
from dxc.analysis.deployed import deployed
from dxc.analysis.on_device import deployment_table, prizes
from dxc.analysis.questions import Questions
from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.errors import AnalysisError
from dxc.hardware.measure.energy.metering import artifact_of
from dxc.metrics import figure_of_merit
from dxc.report.on_device import deployment_figure, deployment_in_text, print_deployment
from tests.report.test_power import _metering

PI = "Raspberry Pi 3 Model B Plus, 4 cores; onnxruntime 1.16.3, cpu, 4 threads"
# accuracy, latency, energy: of the published designs, pruned by 5 and 25 % and without
DEVICE = {"dense": (0.7718, 132.0, 518.0), "5 %": (0.7734, 79.0, 348.0), "25 %": (0.6850, 54.0, 248.0)}


def _store(store_file: Path, *, metered: bool = True, device: str = PI) -> str:
    """Three designs on a Pi, and one that was only trained. The one without pruning was metered in vain."""
    uri = f"sqlite:///{store_file}"
    client = MlflowClient(uri)
    files = (store_file.parent / "mlartifacts").as_uri()
    experiment = client.create_experiment("pi", artifact_location=files)
    for number, name in enumerate([*DEVICE, "trained"]):
        letter = "abcd"[number]
        tags = {
            "dxc.trial": letter * 12, "dxc.design": letter * 12, "dxc.data": "d" * 12, "dxc.kind": "trial",
            "dxc.state": "finished",
        }  # fmt: skip
        run = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        metrics = {"accuracy": 0.7 + number / 100, "onnx_mb": 12.0 - number}
        if name in DEVICE:
            accuracy, latency, energy = DEVICE[name]
            client.set_tag(run, "dxc.measured_on", device)
            metrics |= {"device_accuracy": accuracy, "measured_latency_ms": latency, "peak_memory_mb": 40.0}
            if metered and name != "dense":
                client.set_tag(run, "dxc.energy_meter", "SmartPower 2")
                metrics |= {"energy_mj": energy, "net_energy_mj": energy / 2, "max_power_w": 5.34}
                metrics["fom"] = figure_of_merit(accuracy, latency, energy)
        for key, value in metrics.items():
            client.log_metric(run, key, value)
        if name == "5 %":
            place = store_file.parent / artifact_of(device)
            place.parent.mkdir(parents=True)
            _metering().save(place)
            client.log_artifact(run, str(place), str(Path(artifact_of(device)).parent))
        client.set_terminated(run)
    return uri


def _asked(store: str, *overrides: str) -> Questions:
    folder = Path(store.removeprefix("sqlite:///")).parent
    common = [
        f"tracking.uri={store}", f"cache_dir={folder}/cache", f"out={folder}/reports", "log=false", "study=pi",
    ]  # fmt: skip
    with initialize_config_dir(str(PROJECT_ROOT / "conf" / "analysis"), version_base="1.3"):
        return Questions.of(resolved(compose("analyze", overrides=[*common, *overrides])))


def test_the_table_by_hand(store_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = _asked(_store(store_file), "table=deployment", "choose.where='device_accuracy >= 0.70'")
    table, folder = deployment_table(asked)
    shown = deployment_in_text(table.frame)
    assert list(shown.columns) == [
        "design", "measured accuracy (fraction)", "measured latency (ms)", "measured energy (mJ)",
        "measured net energy (mJ)", "measured maximum power (W)", "measured peak memory (MB)",
        "measured figure of merit (%/(ms mJ))", "runtime", "meter",
    ]  # fmt: skip
    runtime = "onnxruntime 1.16.3, cpu, 4 threads"
    assert [list(row) for row in shown.to_numpy()] == [
        ["25 %", "0.6850", "54", "248", "124", "5.34", "40", "0.005115", runtime, "SmartPower 2"],
        ["5 %", "0.7734", "79", "348", "174", "5.34", "40", "0.002813", runtime, "SmartPower 2"],
        ["dense", "0.7718", "132", "-", "-", "-", "40", "-", runtime, "-"],
    ]
    assert table.lines[0].startswith("note:      energy is missing for 1 of 3 designs")
    assert [line.split(" where")[0] for line in table.lines[1:]] == [
        "fom:       5 %: the largest measured figure of merit",
        "latency:   5 %: the smallest measured latency",
        "energy:    5 %: the smallest measured energy",
    ]
    names = {path.name for path in folder.iterdir()}
    assert {f"deployment.{kind}" for kind in ("md", "tex", "csv")} <= names
    assert {f"deployment_{name}.png" for name in ("energy_mj", "measured_latency_ms")} <= names
    assert runtime not in (folder / "deployment.csv").read_text().splitlines()[0]
    print_deployment(table.frame, folder, title=table.title, lines=table.lines)
    printed = capsys.readouterr().out
    assert "3 designs of pi on a device" in printed and "measured:  on Raspberry Pi 3 Model B Plus" in printed


def test_without_a_meter_no_energy_is_made_up(store_file: Path) -> None:
    table, folder = deployment_table(_asked(_store(store_file, metered=False), "table=deployment"))
    assert table.frame[["energy_mj", "net_energy_mj", "max_power_w", "fom"]].isna().all(axis=None)
    assert deployment_figure(table.frame, "energy_mj") is None
    assert not (folder / "deployment_energy_mj.png").exists()
    assert "energy is missing for 3 of 3 designs" in table.lines[0]
    assert "fom:       none: choose.by=fom: no design has fom" in table.lines[1]
    assert table.lines[2].startswith("latency:   25 %: the smallest measured latency")


def test_nothing_was_deployed(store_file: Path) -> None:
    store = _store(store_file)
    with pytest.raises(
        AnalysisError, match="no run of pi with accuracy == 0.73 was run on a device; python deploy.py"
    ):
        deployment_table(_asked(store, "table=deployment", "where='accuracy == 0.73'"))


def test_repeats_of_one_thing_only() -> None:
    """Two runs of a design on one device and meter are a mean; another device and another meter are rows of their own,
    and compete for no prize."""
    runs = pd.DataFrame(
        {
            "run_id": list("abcd"), "name": "net", "dxc.design": "x", "dxc.data": "y",
            "dxc.measured_on": [PI, PI, "x86; onnxruntime 1.31.1, cpu, 1 thread", PI],
            "dxc.energy_meter": pd.Categorical(["S", "S", "S", "RAPL"]),
            "device_accuracy": [0.8, 0.9, 0.8, 0.8], "energy_mj": [100.0, 200.0, 10.0, None],
            "fom": [1.0, 2.0, 9.0, None],
        }
    )  # fmt: skip
    frame = deployed(runs)
    assert list(frame["n"]) == [1, 2, 1]
    assert list(frame["energy_mj"].fillna(-1)) == [10, 150, -1]
    assert list(frame["device"]) == [
        "x86",
        "Raspberry Pi 3 Model B Plus, 4 cores",
        "Raspberry Pi 3 Model B Plus, 4 cores",
    ]
    assert list(frame["runs"]) == [["c"], ["a", "b"], ["d"]]
    assert prizes(frame, None)[0].startswith("prizes:    none, because these figures are of several devices")
    assert "device" in deployment_in_text(frame)


def test_the_front_of_the_device_and_its_power_are_on_the_page(store_file: Path) -> None:
    store = _store(store_file)
    objectives = "objectives=[device_accuracy,measured_latency_ms,energy_mj]"
    analysis, folder = analyze(
        _asked(store, objectives, "choose.by=fom", "choose.where='device_accuracy >= 0.70'")
    )
    assert sorted(analysis.front["name"]) == ["25 %", "5 %"]  # what is invalid is on no front
    assert list(analysis.aside["reason"]) == [
        "no energy_mj",
        "no device_accuracy, measured_latency_ms, energy_mj",
    ]
    assert analysis.designs.loc[analysis.choice.design, "name"] == "5 %"
    assert (folder / "power.png").exists() and (folder / "deployment.md").exists()
    html = (folder / "index.html").read_text()
    assert "<h2>On the device</h2>" in html and "<h2>Power of the chosen design</h2>" in html
    for drawn in ("against measured energy (mJ)", "against measured latency (ms)", "power over time"):
        assert re.search(f'<img alt="[^"]*{re.escape(drawn)}[^"]*" src="data:image/png;base64,', html), drawn
    assert "measured figure of merit" in html
