"""The table of metrics: each is declared once, and all that shows, limits or compares it reads its row."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from dxc.analysis.analyze import machines_of, saved_view, with_front
from dxc.analysis.designs import Designs, designs_of, parse_objectives, require_comparable
from dxc.config.compose import PROJECT_ROOT
from dxc.config.hardware import Hardware
from dxc.errors import AnalysisError, ConfigError
from dxc.metrics import (
    METRICS,
    Metric,
    figure_of_merit,
    is_fold_accuracy,
    is_of_one_fold,
    known_costs,
    limitable,
    metric_of,
    spread_of,
    undeclared,
)
from dxc.report.console import print_comparison, print_result
from dxc.report.figures import main_effects, pairs, radar
from dxc.report.findings import machines_in_words
from dxc.report.page import page
from dxc.report.progress import Progress
from dxc.report.tables import listing, markdown, ranges
from dxc.search.ledger import Entry
from dxc.search.settings import Settings
from dxc.tracking.record import Record
from dxc.tracking.view import view_tag


def test_directions() -> None:
    up = {name for name, declared in METRICS.items() if declared.maximise}
    of_boxes = {"box_ap50", "box_ap", "mean_iou"}
    assert up == of_boxes | {
        "accuracy", "average_precision", "f1", "auroc", "recall_at_precision", "images_per_second",
        "fold_score", "device_accuracy", "fom",
        "speedup", "scaling_efficiency", "added_speedup", "accuracy_speedup", "roofline_share",
        "map_recall", "map_recall_at_false_alarms", "map_precision", "map_average_precision", "flow_passes",
    }  # fmt: skip


def test_units_in_names() -> None:
    for name, declared in METRICS.items():
        assert declared.unit in (
            "fraction", "count", "ms", "s", "h", "1/s", "1e6 bytes", "mJ", "W", "%/(ms mJ)", "ratio", "currency",
            "km2", "1/km2", "1/km", "s/km2",
        )  # fmt: skip
        assert isinstance(declared.maximise, bool)
        if name.endswith("_ms"):
            assert declared.unit == "ms"
        if name.endswith("_mj"):
            assert declared.unit == "mJ"
        if name.endswith("_w"):
            assert declared.unit == "W"
        if name.endswith("_mb"):
            assert declared.unit == "1e6 bytes"


def test_the_figure_of_merit_by_hand() -> None:
    """Of the published final design: 75.64 %, 3.58 ms, 28.1 mJ give 0.752."""
    assert figure_of_merit(0.7564, 3.58, 28.1) == pytest.approx(0.752, abs=5e-4)
    row = METRICS["fom"]
    assert (row.brief(0.7519), row.brief(0.00284), row.brief(0.0)) == ("0.75", "0.0028", "0.00")


def test_one_predictor_belongs_to_the_latency() -> None:
    assert metric_of("latency_ms/cortexA76cpu_tflite21") is METRICS["latency_ms"]
    with pytest.raises(KeyError):
        metric_of("acuracy")


def test_every_row_is_whole() -> None:
    for name, row in METRICS.items():
        assert row.title and row.meaning, name
        assert row.spread is None or METRICS[row.spread].unit == row.unit, name
        for form in (row.format, row.table_format):
            assert float(format(1234.0, form).replace(",", "")) == 1234.0, name
    with pytest.raises(FrozenInstanceError):
        METRICS["macs"].title = "FLOPs"  # type: ignore[misc]
    assert all(each.kw_only for each in fields(Metric))


def test_what_may_be_limited() -> None:
    assert limitable() == (
        "latency_ms", "measured_latency_ms", "efficiency_ms", "onnx_mb", "peak_memory_mb", "params", "macs"
    )  # fmt: skip
    assert known_costs() == ("latency_ms", "onnx_mb", "params", "macs")


def test_spreads() -> None:
    assert {name: spread_of(name) for name in METRICS if spread_of(name)} == {
        "accuracy": "accuracy_std",
        "latency_ms": "latency_std_ms",
    }
    assert spread_of("latency_ms/pi4") is None  # one predictor has none over predictors
    assert spread_of("flops") is None
    assert [name for name, row in METRICS.items() if row.same_in_repeats] == ["latency_ms"]


def test_curves_of_folds_are_no_metrics() -> None:
    assert is_of_one_fold("val_accuracy.fold1") and is_of_one_fold("train_loss.fold12")
    for name in ("fold_score", "folds", "latency_ms/pi4", "val/accuracy"):
        assert not is_of_one_fold(name)
    assert is_fold_accuracy("val_accuracy.fold12")
    for name in ("train_loss.fold1", "val_accuracy", "folds/val_accuracy", "val_accuracy_top5.fold1"):
        assert not is_fold_accuracy(name)
    runs = RUNS.assign(**{"val_accuracy.fold1": 0.5, "fold_score": 0.5, "val/accuracy": 0.5})
    message = (
        r"logged speed; runs that logged one: accuracy \(3\), accuracy_std \(2\), warmth_mj \(3\), fold_score"
    )
    with pytest.raises(AnalysisError, match=message + r" \(3\), val/accuracy \(3\)$"):
        parse_objectives(["speed"], runs)


# --- one row is enough: a metric that dxc does not have --------------------------------------------------------------

ENERGY = Metric(
    unit="mJ",
    maximise=False,
    meaning="an image, metered",
    title="energy",
    in_comparison=True,
    format=".3f",
    table_format=".1f",
    origin="measured",
    may_be_limited=True,
    spread="accuracy_std",
    comparable_by={"dxc.energy_meter": "the meter of energy"},
    in_view=True,
)
RUNS = pd.DataFrame(
    {
        "run_id": ["r1", "r2", "r3"],
        "name": ["wide", "narrow", "slow"],
        "accuracy": [0.94, 0.80, 0.70],
        "accuracy_std": [0.25, 0.5, math.nan],
        "warmth_mj": [3.25, 1.5, 9.0],
        "model.width": ["64", "32", "16"],
        "dxc.design": ["A", "B", "C"],
        "dxc.data": ["d", "d", "d"],
        "dxc.energy_meter": ["SmartPower2"] * 3,
        "dxc.measured_on": ["Pi 5", "Pi 5", "Pi 5"],
    }
)
Shown = tuple[pd.DataFrame, dict[str, Metric], list[str]]


@pytest.fixture
def energy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one row."""
    monkeypatch.setitem(METRICS, "warmth_mj", ENERGY)


@pytest.fixture
def designs(energy: None) -> Shown:
    """wide and narrow are the front."""
    objectives = parse_objectives(
        ["accuracy", "warmth_mj"], RUNS
    )  # no direction is asked for: the row has it
    found = designs_of(RUNS, objectives)
    frame, _, _ = with_front(found, objectives)
    assert list(frame["front"]) == [True, True, False]
    return frame, objectives, found.knobs


def test_it_is_unknown_without_its_row() -> None:
    with pytest.raises(AnalysisError, match="the direction of warmth_mj is not known"):
        parse_objectives(["warmth_mj"], RUNS)
    with pytest.raises(KeyError):
        metric_of("warmth_mj")


def test_it_is_in_tables(designs: Shown) -> None:
    frame, objectives, knobs = designs
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in markdown(listing(frame, objectives, knobs)).splitlines()
    ]
    assert cells[0] == ["design", "accuracy (fraction)", "measured energy (mJ)", "model.width"]
    assert cells[2] == ["wide", "0.9400 ± 0.2500", "3.2 ± 0.2", "64"]
    assert cells[4] == ["slow", "0.7000", "9.0", "16"]
    assert ranges(frame, objectives).iloc[1].tolist() == ["measured energy (mJ)", "lower", "1.5", "9.0", 3]


def test_it_is_on_the_axes_of_figures(designs: Shown) -> None:
    frame, objectives, knobs = designs
    label = "measured energy (mJ)\n← lower is better"
    (axes,) = pairs(frame, objectives).axes
    assert axes.get_xlabel() == label
    effects = main_effects(pd.concat([frame] * 2), objectives, knobs)  # three designs tell no effect
    assert effects is not None and label in [axes.get_ylabel() for axes in effects.axes]
    caption = " ".join(text.get_text() for text in radar(frame, objectives, knobs).texts)
    assert "measured energy 9 → 1.50 mJ" in " ".join(caption.split())


def test_it_is_on_the_page(designs: Shown) -> None:
    frame, objectives, knobs = designs
    html = page(frame, objectives, knobs, title="first")
    assert '<button type="button">measured energy (mJ)</button>' in html
    assert '<td class="number" data-sort="3.25">3.250 ± 0.250</td>' in html
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    data = json.loads(content)
    assert [each["maximise"] for each in data["objectives"]] == [True, False]
    assert "measured energy: 3.250 ± 0.250 mJ" in data["hover"][0]
    assert "Lower is better: measured energy." in html


def test_its_machine_is_named(designs: Shown) -> None:
    _, objectives, _ = designs
    analysis: Any = SimpleNamespace(objectives=objectives, machines=machines_of(RUNS, objectives))
    assert machines_in_words(analysis) == ["measured:  energy on Pi 5; energy of SmartPower2"]


def test_it_is_compared_by_what_its_row_says(energy: None) -> None:
    objectives = parse_objectives(["warmth_mj"], RUNS)
    require_comparable(RUNS.assign(**{"dxc.data": ["d", "e", "f"]}), objectives, [])
    other = RUNS.assign(**{"dxc.energy_meter": ["SmartPower2", "SmartPower2", "INA226"], "dxc.design": "A"})
    message = r"dxc.energy_meter \(the meter of energy\): 'SmartPower2' \(2 runs\), 'INA226' \(1 run\)"
    with pytest.raises(AnalysisError, match=message):
        require_comparable(other, objectives, [])
    require_comparable(other, objectives, ["dxc.energy_meter"])
    assert list(designs_of(other, objectives).frame["warmth_mj"]) == [2.375, 9.0]  # repeats on one meter only


def test_its_spread_is_what_its_row_says(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = RUNS.assign(**{"dxc.design": ["A", "A", "B"]})
    for same, spread in (
        (False, 1.2374368670764582),
        (True, 0.375),
    ):  # over repeats; mean of those within them
        monkeypatch.setitem(METRICS, "warmth_mj", replace(ENERGY, same_in_repeats=same))
        found: Designs = designs_of(runs, parse_objectives(["warmth_mj"], runs))
        assert found.frame["spread.warmth_mj"][0] == pytest.approx(spread)


def test_it_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"warmth_mj": 5.0}
    with pytest.raises(ConfigError, match=r"hardware\.limits\.warmth_mj: no such cost"):
        Hardware.of({"name": "pi", "limits": limits})
    monkeypatch.setitem(METRICS, "warmth_mj", ENERGY)
    assert Hardware.of({"name": "pi", "limits": limits}).limits == limits
    with pytest.raises(ConfigError, match=r"accuracy: no such cost; latency_ms, .*, warmth_mj have limits"):
        Hardware.of({"name": "pi", "limits": {"accuracy": 1}})


def test_it_has_limits_of_a_search_if_it_is_known_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    section = _search_section()
    monkeypatch.setitem(METRICS, "warmth_mj", ENERGY)  # measured: after training
    with pytest.raises(ConfigError, match="warmth_mj: no such cost; latency_ms, onnx_mb, params, macs have"):
        Settings.of({**section, "limits": {"warmth_mj": 5}}, "accuracy")
    assert Settings.of(section, "accuracy", {"warmth_mj": 7.0}).limits == {}
    monkeypatch.setitem(METRICS, "warmth_mj", replace(ENERGY, known_before_training=True))
    assert Settings.of({**section, "limits": {"warmth_mj": 5}}, "accuracy").limits == {"warmth_mj": 5}
    assert Settings.of({**section, "limits": {"macs": 9}}, "accuracy", {"warmth_mj": 7.0}).limits == {
        "warmth_mj": 7.0,
        "macs": 9,
    }
    own = Settings.of({**section, "limits": {"warmth_mj": None}}, "accuracy", {"warmth_mj": 7.0})
    assert own.limits == {}  # null is no limit, whatever the device has
    with_energy = {**section, "tuner": "pareto", "objectives": ["accuracy", "warmth_mj"]}
    assert Settings.of(with_energy, "accuracy").objectives == ["accuracy", "warmth_mj"]


def _search_section() -> dict[str, Any]:
    from omegaconf import OmegaConf

    section: Any = OmegaConf.load(PROJECT_ROOT / "conf" / "search.yaml")["search"]
    given = {"objective": "accuracy", "objectives": ["accuracy", "macs"], "limits": {}, "tuner": "random"}
    return {**OmegaConf.to_container(section), **given}  # type: ignore[dict-item]


def test_it_is_in_the_saved_view(energy: None) -> None:
    assert "metrics.`warmth_mj`" in _columns_of(view_tag())
    assert _columns_of(view_tag())[1:3] == ["metrics.`accuracy`", "metrics.`latency_ms`"]
    accuracy_only: Any = SimpleNamespace(objectives={"accuracy": METRICS["accuracy"]}, knobs=[])
    assert saved_view(accuracy_only)["columns"] == [
        "attributes.Dataset", "metrics.accuracy", "metrics.measured_latency_ms",
        "metrics.warmth_mj", "metrics.fit_seconds", "tags.dxc.rank",
        "tags.dxc.front", "tags.data",
    ]  # fmt: skip


def _columns_of(tag: dict[str, str]) -> list[str]:
    (value,) = tag.values()
    state = json.loads(value)["state"].removeprefix("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(state)))["selectedColumns"]


def test_the_saved_view_of_a_new_study() -> None:
    assert [column for column in _columns_of(view_tag()) if column.startswith("metrics")] == [
        "metrics.`accuracy`", "metrics.`latency_ms`", "metrics.`measured_latency_ms`",
        "metrics.`onnx_mb`", "metrics.`fit_seconds`",
    ]  # fmt: skip


def test_it_is_in_the_terminal(
    energy: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result: Any = SimpleNamespace(
        name="wide", metrics={"warmth_mj": 3.25}, score="accuracy", fold_scores={"fold1": 0.5}, source="",
        predicted_for="", measured_on="", notes=(), excluded=0, onnx=tmp_path, run_id="r", experiment_id="1", study="s",
        tracking_uri="sqlite:///x",
    )  # fmt: skip
    print_result(result)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["energy", "3.250", "mJ", "measured", "warmth_mj", "an", "image,", "metered"] in printed

    row = {"file": "a.onnx", "warmth_mj": 3.25, "warmth_mj/a": 3.0, "warmth_mj/b": 3.5, "macs": 1e6}
    print_comparison(pd.DataFrame([row]), [])
    printed = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert [
        "file",
        "measured energy (mJ)",
        "measured energy a (mJ)",
        "measured energy b (mJ)",
        "MACs",
    ] in printed
    assert ["a.onnx", "3.25", "3.00", "3.50", "1,000,000"] in printed


def test_it_is_in_the_lines_of_a_search(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(METRICS, "warmth_mj", replace(ENERGY, known_before_training=True))
    progress = Progress("first", ["accuracy", "warmth_mj", "macs"], "accuracy")
    progress._console = Console(width=200)
    entry = Entry("0" * 12, "1" * 32, "finished", [], 0)
    entry.metrics = {"fold_score": 0.9, "warmth_mj": 3.25, "macs": 1e6}
    standing: Any = SimpleNamespace(done=1, total=1)
    progress.trial("wide", entry, part=None, on_front=False, standing=standing)
    assert "accuracy 0.9000   1,000,000 MACs   3.25 mJ measured" in capsys.readouterr().out
    progress.dry_run([("wide", {"warmth_mj": 3.25}, "")], seconds=1, trials=1, parallel=1)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["energy", "3.25", "3.25", "3.25", "mJ", "measured"] in printed


def test_it_can_be_recorded(energy: None, tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.log({"warmth_mj": 3.25, "warmth_mj/a": 3.0})
    assert record.content["metrics"] == {"warmth_mj": 3.25, "warmth_mj/a": 3.0}


def test_a_metric_that_is_not_declared_is_compared_by_hardware_and_chips() -> None:
    row = undeclared("flops", maximise=False)
    assert list(row.comparable_by) == ["hardware", "dxc.data"] and row.symbol == ""
