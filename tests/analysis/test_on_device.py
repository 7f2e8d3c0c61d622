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
from dxc.report.on_device import (
    deployment_figure,
    deployment_in_text,
    missing,
    page_sections,
    print_deployment,
)
from tests.report.test_power import _metering

PI = "Raspberry Pi 3 Model B Plus, 4 cores; onnxruntime 1.16.3, cpu, 4 threads"
# accuracy, latency, energy: of the published designs, pruned by 5 and 25 % and without
DEVICE = {"dense": (0.7718, 132.0, 518.0), "5 %": (0.7734, 79.0, 348.0), "25 %": (0.6850, 54.0, 248.0)}


DRIFTED = "idle power drifted by 7.0%, from 2.000 W to 2.140 W; the most is 5%"
DIFFER = "the repeats differ by 9.0% of their mean; the most is 5%"
VALID = {"dense": f"invalid: {DRIFTED}", "5 %": "valid", "25 %": "valid"}


def _store(store_file: Path, *, energy: dict[str, str] = VALID, device: str = PI) -> str:
    """Three designs on a Pi, and one that was only trained. `energy` is the verdict on each of the three."""
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
            accuracy, latency, mj = DEVICE[name]
            client.set_tag(run, "dxc.measured_on", device)
            metrics |= {"device_accuracy": accuracy, "measured_latency_ms": latency, "peak_memory_mb": 40.0}
            client.set_tag(run, "dxc.energy", energy[name])
            client.set_tag(run, "dxc.measurement", "valid")
            client.set_tag(run, "dxc.energy_meter", "" if energy[name] == "not metered" else "SmartPower 2")
            if energy[name] == "valid":
                metrics |= {"energy_mj": mj, "net_energy_mj": mj / 2, "max_power_w": 5.34}
                metrics["fom"] = figure_of_merit(accuracy, latency, mj)
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
        "measured figure of merit (%/(ms mJ))", "runtime",
    ]  # fmt: skip
    runtime = "onnxruntime 1.16.3, cpu, 4 threads"
    assert [list(row) for row in shown.to_numpy()] == [
        ["25 %", "0.6850", "54", "248", "124", "5.34", "40", "0.005115", runtime],
        ["5 %", "0.7734", "79", "348", "174", "5.34", "40", "0.002813", runtime],
        ["dense", "0.7718", "132", "invalid", "invalid", "invalid", "40", "invalid", runtime],
    ]
    noted, won = table.lines[:3], table.lines[3:]
    assert noted == [
        "note:      energy was measured and is invalid for 1 of 3 designs (dense)",
        f"note:      energy of dense is invalid (SmartPower 2): {DRIFTED}",
        "note:      for a valid energy: let the device come to a steady temperature first, and stop what else runs on "
        "it; then repeat the command with again=true",
    ]
    assert [line.split(" where")[0] for line in won] == [
        "fom:       5 %: the largest measured figure of merit",
        "latency:   5 %: the smallest measured latency",
        "energy:    5 %: the smallest measured energy",
    ]
    names = {path.name for path in folder.iterdir()}
    assert {f"deployment.{kind}" for kind in ("md", "tex", "csv")} <= names
    assert {f"deployment_{name}.png" for name in ("energy_mj", "measured_latency_ms")} <= names
    assert runtime not in (folder / "deployment.csv").read_text().splitlines()[0]
    assert list(pd.read_csv(folder / "deployment.csv")["measured energy (mJ)"]) == ["248", "348", "invalid"]
    assert "energy of dense is invalid" in (folder / "deployment.md").read_text()
    print_deployment(table.frame, folder, title=table.title, lines=table.lines)
    printed = capsys.readouterr().out
    assert "3 designs of pi on a device" in printed and "measured:  on Raspberry Pi 3 Model B Plus" in printed


def test_without_a_meter_no_energy_is_made_up(store_file: Path) -> None:
    store = _store(store_file, energy=dict.fromkeys(DEVICE, "not metered"))
    table, folder = deployment_table(_asked(store, "table=deployment"))
    assert table.frame[["energy_mj", "net_energy_mj", "max_power_w", "fom"]].isna().all(axis=None)
    assert deployment_figure(table.frame, "energy_mj") is None
    assert not (folder / "deployment_energy_mj.png").exists()
    assert table.lines[0] == (
        "note:      energy is missing for 3 of 3 designs (5 %, dense, 25 %), because nothing was metered. Deploy with "
        "a meter: python deploy.py energy=..."
    )
    assert "fom:       none: choose.by=fom: no design has fom; deploy them with a meter" in table.lines[1]
    assert table.lines[2].startswith("latency:   25 %: the smallest measured latency")


def test_no_meter_is_told_from_an_invalid_figure(store_file: Path) -> None:
    """Each has its designs, their number and its own advice; a prize is not missed for want of a meter."""
    energy = {"dense": "not metered", "5 %": f"invalid: {DRIFTED}", "25 %": f"invalid: {DIFFER}"}
    table, _ = deployment_table(_asked(_store(store_file, energy=energy), "table=deployment"))
    shown = deployment_in_text(table.frame).set_index("design")
    assert dict(shown["measured energy (mJ)"]) == {"dense": "-", "5 %": "invalid", "25 %": "invalid"}
    assert table.frame[["energy_mj", "fom"]].isna().all(axis=None)
    lines = [line.removeprefix("note:      ") for line in table.lines]
    assert lines[:4] == [
        "energy is missing for 1 of 3 designs (dense), because nothing was metered. Deploy with a meter: python "
        "deploy.py energy=...",
        "energy was measured and is invalid for 2 of 3 designs (5 %, 25 %)",
        f"energy of 5 % is invalid (SmartPower 2): {DRIFTED}",
        f"energy of 25 % is invalid (SmartPower 2): {DIFFER}",
    ]
    assert "use longer windows (seconds=120); then repeat the command" in lines[4]
    for prize in (line for line in lines if line.startswith(("fom:", "energy:"))):
        assert "the energy of 2 of 3 was measured and is invalid" in prize and "with a meter" not in prize
    html = "".join(content for _, content in page_sections(table.frame))
    assert all(f"<p>{line}</p>" in html for line in lines[:4])
    with pytest.raises(AnalysisError, match="the energy of 2 of 3 was measured and is invalid: ") as refused:
        analyze(
            _asked(
                f"sqlite:///{store_file}",
                "objectives=[device_accuracy,measured_latency_ms]",
                "choose.by=energy",
            )
        )
    assert "with a meter" not in str(refused.value)


def test_a_number_that_is_invalid_is_no_number() -> None:
    """A run of a strange store has both, a value and a verdict against it. Of repeats those that count are averaged."""
    runs = pd.DataFrame(
        {
            "run_id": list("abcd"), "name": ["net", "net", "other", "slow"], "dxc.design": ["x", "x", "z", "s"],
            "dxc.data": "y", "dxc.measured_on": PI, "dxc.energy_meter": "S", "device_accuracy": 0.8,
            "energy_mj": [100.0, 900.0, 1.0, 50.0], "measured_latency_ms": [2.0, 4.0, 3.0, None],
            "fom": [1.0, 9.0, 99.0, None], "dxc.energy": ["valid", f"invalid: {DIFFER}", f"invalid: {DIFFER}", "valid"],
            "dxc.measurement": ["valid", "valid", "valid", "invalid: its runs spread by 30% of their median"],
        }
    )  # fmt: skip
    frame = deployed(runs).set_index("name")
    assert list(frame.loc["net", ["energy_mj", "fom", "measured_latency_ms"]]) == [100, 1, 3]
    assert frame.loc[["other", "slow"], "fom"].isna().all()
    assert dict(frame["energy_mj"].isna()) == {"net": False, "other": True, "slow": False}
    shown = deployment_in_text(frame.reset_index()).set_index("design")
    assert list(shown.loc["slow"])[1:4] == ["invalid", "50", "-"]
    assert shown.loc["other", "measured figure of merit (%/(ms mJ))"] == "invalid"
    notes = missing(frame.reset_index())
    assert "energy of 1 of 2 runs of net is invalid, and not in its mean" in notes
    assert "latency was measured and is invalid for 1 of 3 designs (slow)" in notes
    assert "latency of slow is invalid: its runs spread by 30% of their median" in notes


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
    for line in prizes(frame, None)[::2]:  # fom and energy; nobody has a latency
        assert line.partition(":")[2].strip().startswith("none, because these figures are of several devices")
    assert deployment_figure(frame, "energy_mj") is None  # no front of two devices
    assert "device" in deployment_in_text(frame)


def test_other_threads_are_another_measurement() -> None:
    """One design with four threads and with one: two rows, and neither is the faster one."""
    one = PI.replace("4 threads", "1 thread")
    runs = pd.DataFrame(
        {
            "run_id": list("ab"), "name": "net", "dxc.design": "x", "dxc.data": "y", "dxc.measured_on": [PI, one],
            "dxc.energy_meter": "", "device_accuracy": 0.8, "measured_latency_ms": [10.0, 30.0],
        }
    )  # fmt: skip
    frame = deployed(runs)
    assert sorted(frame["measured_latency_ms"]) == [10, 30] and list(frame["n"]) == [1, 1]
    (line,) = [each for each in prizes(frame, None) if each.startswith("latency:")]
    assert line.startswith(
        "latency:   none, because these figures are of several devices, runtimes or meters"
    )
    assert deployment_figure(frame, "measured_latency_ms") is None
    (line,) = [each for each in prizes(frame, "measured_latency_ms < 20") if each.startswith("latency:")]
    assert line.startswith("latency:   net: the smallest measured latency")


@pytest.mark.long
def test_the_front_of_the_device_and_its_power_are_on_the_page(store_file: Path) -> None:
    store = _store(store_file)
    objectives = "objectives=[device_accuracy,measured_latency_ms,energy_mj]"
    analysis, folder = analyze(
        _asked(store, objectives, "choose.by=fom", "choose.where='device_accuracy >= 0.70'")
    )
    assert sorted(analysis.front["name"]) == ["25 %", "5 %"]  # what is invalid is on no front
    assert list(analysis.aside["reason"]) == [
        "an invalid energy_mj",
        "no device_accuracy, measured_latency_ms, energy_mj",
    ]
    assert analysis.designs.loc[analysis.choice.design, "name"] == "5 %"
    assert (folder / "power.png").exists() and (folder / "deployment.md").exists()
    html = (folder / "index.html").read_text()
    assert "<h2>On the device</h2>" in html and "<h2>Power of the chosen design</h2>" in html
    for drawn in ("against measured energy (mJ)", "against measured latency (ms)", "power over time"):
        assert re.search(f'<img alt="[^"]*{re.escape(drawn)}[^"]*" src="data:image/png;base64,', html), drawn
    assert "measured figure of merit" in html
