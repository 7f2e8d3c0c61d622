"""What every command prints fits 80 columns, and 120; commands, paths and single words stay whole."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from dxc.analysis.network_file import NetworkFile
from dxc.metrics import METRICS
from dxc.pipeline.result import Result
from dxc.report.console import print_comparison, print_package, print_result
from dxc.report.findings import print_findings
from dxc.report.progress import Progress
from dxc.report.terminal import PIPE_COLUMNS, Column, new_console, print_table, print_text
from dxc.search.ledger import Entry
from dxc.tracking.store import Store
from tests.report.conftest import Designs

NAME = "resnet18 k7 s2 p3 w64 pool3/2, 7ch b16"
MACHINE = "ort_cpu_xeon (onnxruntime 1.31.1, 1 thread, Intel(R) Xeon(R) Processor, 4 cores)"


@pytest.fixture(params=[80, 120])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def _fits(capsys: pytest.CaptureFixture[str], columns: int) -> str:
    """What was printed, none of whose lines is too long; an address stays whole, so that it can be opened."""
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if len(line) > columns and "http://" not in line] == []
    return printed


def _cells(printed: str) -> set[tuple[str, ...]]:
    """Rows of tables, a cell per word or number."""
    return {tuple(line.split()) for line in printed.splitlines()}


def test_the_result_of_train(columns: int, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    metrics = {name: 123456.7 if row.unit == "count" else 0.5 for name, row in METRICS.items()}
    result = {
        "name": NAME, "metrics": metrics | {"latency_ms/cortexA76cpu_tflite21": 4.0, "latency_ms/b": 1.0},
        "score": "accuracy", "fold_scores": {f"fold{n}": 0.5 for n in range(1, 11)}, "predictions": pd.DataFrame(),
        "onnx": Path("model.onnx"), "excluded": 1, "notes": ("a word " * 30,), "run_id": "r" * 32,
        "experiment_id": "1", "tracking_uri": "sqlite:///x", "study": "first", "predicted_for": MACHINE,
        "measured_on": MACHINE, "source": "8 synthetic chips",
    }  # fmt: skip
    print_result(Result(**result))
    printed = _fits(capsys, columns)
    assert "accuracy by fold: fold1 0.5000" in printed and "left out: 1 file, listed" in printed
    told = [line.split() for line in printed.splitlines()]
    size = next(row for row in told if row[:2] == ["ONNX", "file"])
    assert size[2:5] == ["0.5000", "MB", "counted"] and ("onnx_mb" in size) == (columns == 120)
    assert ["cortexA76cpu_tflite21", "4.0000", "ms", "predicted"] in told
    print_result(Result(**result | {"fold_scores": {"holdout": 0.5}}))
    held_out = capsys.readouterr().out
    assert "accuracy by split: holdout 0.5000" in held_out and "mean over folds" not in held_out


def test_the_verdict_of_calibrate(columns: int, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    errors = {"n": 12, "within_5_percent": 0.5, "within_10_percent": 0.97, "mape": 0.031}
    held_out = {
        "all": {"networks": errors},
        "families": {"mobilenet_v1": errors},
        "kernels": {"conv-bn": errors},
    }
    about = {
        "networks": 1, "minutes_measuring": 9.5, "minutes_fitting": 0.2, "networks_too_noisy": 3, "threads": 1,
        "device": "AMD EPYC, 2 cores", "runtime": "onnxruntime", "runtime_version": "1.31.1", "held_out": held_out,
        "rank_correlation": 0.99, "reference_spread": 0.02,
    }  # fmt: skip
    (tmp_path / "my_cpu").mkdir()
    (tmp_path / "my_cpu" / "package.json").write_text(json.dumps(about))
    print_package(tmp_path / "my_cpu")
    printed = capsys.readouterr().out
    long = [line for line in printed.splitlines() if len(line) > columns]
    assert all(line.startswith("package:   ") for line in long)
    assert ("all", "networks", "12", "50.0%", "97.0%", "3.1%") in _cells(printed)
    assert "1 thread\n" in printed and "made from: 1 network in 9.5 min" in printed
    assert "\nnext:      python train.py hardware.predictors=[my_cpu]\n" in printed


def test_predicted_against_measured(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "file": "networks/resnet18_w64_k7.onnx", "latency_ms": 5.2, "latency_ms/cortexA76cpu_tflite21": 5.0,
        "latency_ms/myriadvpu_openvino2019r2": 5.4, "measured_latency_ms": 5.1, "measured": "invalid",
        "error": 0.0196, "peak_memory_mb": 56.2, "onnx_mb": 44.7, "macs": 1_234_567_890.0,
    }  # fmt: skip
    print_comparison(pd.DataFrame([row, row | {"measured_latency_ms": float("nan")}]), ["a note " * 30])
    printed = _fits(capsys, columns)
    for value in ("5.20", "5.00", "5.40", "5.10", "+2.0%", "invalid", "56.20", "44.70", "1,234,567,890"):
        assert value in printed
    assert "(MB)" in printed and "file MB" not in printed


def test_the_lines_of_a_search(
    columns: int, capsys: pytest.CaptureFixture[str], tmp_path: Path, store_file: Path
) -> None:
    objectives = ["accuracy", "latency_ms", "onnx_mb"]
    progress = Progress("first", objectives, "accuracy")
    entry = Entry(trial="0" * 12, run_id="r", state="finished", overrides=[], number=1)
    entry.metrics = {
        "accuracy": 0.5,
        "fold_score": 0.5,
        "accuracy_std": 0.1,
        "latency_ms": 1.0,
        "onnx_mb": 11.2,
    }
    standing: Any = SimpleNamespace(done=1, total=1)
    progress.infeasible(NAME, "onnx_mb 44.7 is over the limit of 20 (search.limits.onnx_mb)")
    progress.trial(NAME, entry, part=None, on_front=True, standing=standing)
    progress.dry_run([(NAME, {"latency_ms": 1.0, "macs": 1e9}, "")], seconds=9999, trials=1, parallel=1)
    progress.end(
        [(NAME, entry), (NAME, entry)],
        objectives=objectives,
        counts={"finished": 2},
        store=Store(f"sqlite:///{store_file}", "first", patience_s=0),
        complete=True,
        folder=tmp_path,
        origins={},
        standing=standing,
    )
    printed = capsys.readouterr().out
    long = [line for line in printed.splitlines() if len(line) > columns]
    # a path is one word, and an address and a command stay whole
    assert all(tmp_path.name in line or "http://" in line or "next:" in line for line in long)
    assert "no other finished trial is as good" in printed and "predicted latency" in printed
    assert "latency_ms" not in printed.split("known without training")[1]
    assert ("latency", "1.00", "1.00", "1.00", "ms", "predicted") in _cells(printed)
    assert "training 1 trial: about 2 h 47 min" in " ".join(printed.split())
    assert "0.5000" in printed and "0.1000" in printed and "0" * 12 in printed


@pytest.mark.parametrize("whole", [False, True])
def test_the_tables_of_an_analysis(
    columns: int, whole: bool, capsys: pytest.CaptureFixture[str], four: Designs, tmp_path: Path
) -> None:
    designs, objectives, knobs = four
    designs["name"] = [f"row {n}: {NAME}" for n in range(1, 5)]
    designs["dominated_by"] = ["", "", designs["name"][0], designs["name"][0]]
    baseline = SimpleNamespace(frame=designs.drop(columns="unstable"), knobs=knobs)
    analysis: Any = SimpleNamespace(
        designs=designs, front=designs[designs["front"]], objectives=objectives, knobs=knobs, whole=whole,
        baseline=baseline, front_profile=None, view="", title="study first", hypervolume=0.5,
        reference={"accuracy": 0.5}, machines={"predicted": {MACHINE: 3}}, notes=("a note " * 30,), comparison=None,
        choice=SimpleNamespace(design=0, runner_up=1, rule="the knee of the front"), network=NetworkFile(),
        commands=("python train.py " + "model.width=64 " * 10, ""),
    )  # fmt: skip
    print_findings(analysis, tmp_path)
    printed = capsys.readouterr().out
    long = [line for line in printed.splitlines() if len(line) > columns]
    assert all(line.startswith(("reproduce: python", "report: ")) for line in long)
    assert ("trials:    for compare=" in printed) is not whole
    assert any(line.startswith("reproduce: python") for line in long)  # a command is copied whole
    shown = printed.split("baseline\n")[0]
    values = ["0.9000", "0.0100", "1.00", "0.25", "5ch", "7ch", "16"]
    for value in [*values, *(["5.00", "400.00"] if whole else ["0.90"])]:
        assert value in shown
    for heading in ("kernel", "batch_size"):
        assert heading in shown and f".{heading}" not in shown
    assert {"p_front", "n", "dominated_by"}.isdisjoint(printed.split())


def test_a_column_that_has_no_room_follows_below() -> None:
    """Details go below together, and the same number joins the rows."""
    table = [
        Column("design", ["a", "b"], words=True),
        Column("accuracy (fraction)", ["0.9000 ± 0.0100", "0.8000 ± 0.0200"]),
        Column("pool", ["max", "none"], words=True, detail=True),
        Column("width", ["8", "16"], words=True, detail=True),
    ]
    assert _shown(table, 40).splitlines() == [
        "design  accuracy (fraction)  pool  width",
        "─" * 40,
        "a           0.9000 ± 0.0100  max   8",
        "b           0.8000 ± 0.0200  none  16",
        "",
    ]
    assert _shown(table, 28).splitlines() == [
        "                  accuracy",
        "#  design       (fraction)",
        "─" * 26,
        "1  a       0.9000 ± 0.0100",
        "2  b       0.8000 ± 0.0200",
        "",
        "#  pool  width",
        "─" * 14,
        "1  max   8",
        "2  none  16",
        "",
    ]


def test_words_are_broken_before_columns_move() -> None:
    table = [Column("design", [f"row 1: {NAME}"], words=True), Column("accuracy", ["0.9000"])]
    lines = [line.rstrip() for line in _shown(table, 40).splitlines()]
    assert lines[2:] == ["row 1: resnet18 k7 s2 p3 w64      0.9000", "pool3/2, 7ch b16", ""]


def test_a_pipe_has_a_width_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Texts stay on one line there, so that grep finds them."""
    monkeypatch.delenv("COLUMNS", raising=False)
    console = new_console()
    print_text(console, "note: " + "word " * 50)
    assert console.width == PIPE_COLUMNS and len(capsys.readouterr().out.splitlines()) == 1
    monkeypatch.setenv("COLUMNS", "80")
    print_text(new_console(), "note: " + "word " * 50)
    first, *others = capsys.readouterr().out.splitlines()
    assert len(first) <= 80 and others and all(line.startswith("      word") for line in others)


def _shown(table: list[Column], width: int) -> str:
    screen = io.StringIO()
    print_table(Console(file=screen, width=width), table)
    return "\n".join(line.rstrip() for line in screen.getvalue().splitlines()) + "\n"


def test_batch_sizes_shares_and_calls(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing is a dash; the published shares stand beside ours where the batch size is the same."""
    monkeypatch.setenv("COLUMNS", "400")
    nan = float("nan")
    batches = pd.DataFrame(
        {
            "file": ["m.onnx"] * 2,
            "batch": [1, 3],
            "batch_ms": [0.5, nan],
            "ms_per_image": [0.5, nan],
            "measured": ["valid", "invalid"],
            "optimum": [True, False],
        }
    )
    calls = {
        f"api/call{number}": [share, nan]
        for number, share in enumerate((0.4, 0.2, 0.1, 0.1, 0.1, 0.06, 0.04))
    }
    profile = pd.DataFrame(
        {
            "file": ["m.onnx"] * 2,
            "source": ["torch"] * 2,
            "batch": [1, 3],
            "ms": [2.0, 4.0],
            "ms_per_image": [2.0, 4 / 3],
            "conv": [0.75, 0.5],
            "other": [0.25, nan],
            "memory_ms": [0.125, 0.25],
            "memory_share": [0.5, 0.25],
            **calls,
        }
    )
    published = pd.DataFrame({"batch": [1, 2], "conv": [0.077, 0.097]})
    row = {"file": "m.onnx", "measured": "valid"}
    print_comparison(pd.DataFrame([row]), ["done"], batches=batches, profile=profile, published=published)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for expected in (
        "m.onnx 1 0.500 0.5000 optimum",
        "m.onnx 3 - - invalid",
        "file profiler batch a batch (ms) conv (%) other (%) memory (ms) memory (%) published: conv (%)",
        "m.onnx torch 1 2.000 75.0 25.0 0.125 50.0 7.7",
        "m.onnx torch 3 4.000 50.0 - 0.250 25.0 -",
        "published: original SPP-Net on an NVIDIA RTX A5500, by Nsight Systems (doi 10.1145/3624062.3624260)",
        "file profiler batch call0 (%) call1 (%) call2 (%) call3 (%) call4 (%) other calls (%)",
        "m.onnx torch 1 40.0 20.0 10.0 10.0 10.0 10.0",
        "m.onnx torch 3 - - - - - -",
        "note: done",
    ):
        assert expected in lines


def test_files_are_named_alone_unless_two_names_are_equal(
    columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = "runs/a_folder_with_a_long_name/another"
    paths = [f"{folder}/mobilenet_pruned_by_a_half.onnx", f"{folder}/model.onnx", "b/model.onnx"]
    table = pd.DataFrame({"file": paths, "onnx_mb": [1.0, 2.0, 3.0], "macs": 1e6, "measured": "not measured"})
    batches = pd.DataFrame(
        {
            "file": paths[:1],
            "batch": 2,
            "batch_ms": 1.0,
            "ms_per_image": 0.5,
            "measured": "valid",
            "optimum": True,
        }
    )
    print_comparison(table, [], batches=batches)
    printed = capsys.readouterr().out
    assert printed.count("mobilenet_pruned_by_a_half.onnx") == 2
    assert paths[0] not in printed
    assert paths[1] in printed
    assert paths[2] in printed
    assert all(len(line) <= columns for line in printed.splitlines())


def test_a_word_of_a_cell_is_not_broken() -> None:
    words = Column("file", ["a_name_of_more_than_twenty_letters.onnx", "b"], words=True)
    assert words.least() == len(words.cells[0])
    assert Column("file", ["x" * 200], words=True).least() == 72
    assert Column("design", ["short words " * 9], words=True).least() == 20


def test_why_there_is_no_command_is_broken_between_words(
    columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line of a command stays whole; one that says why there is none is a sentence."""
    reason = "not known: " + "a word " * 40
    print_text(new_console(), f"reproduce: {reason}\nreproduce: {'python train.py ' * 20}")
    told = capsys.readouterr().out.splitlines()
    assert " ".join(line.strip() for line in told[:-1]) == f"reproduce: {reason}".strip()
    assert len(told) > 3 and all(len(line) <= columns for line in told[:-1])
    assert told[-1].strip() == f"reproduce: {'python train.py ' * 20}".strip()
