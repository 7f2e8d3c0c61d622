"""analyze.py on a real store whose names were chosen by somebody hostile: each output holds them as text."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from PIL import Image
from rich.cells import cell_len

from dxc.config.compose import PROJECT_ROOT
from dxc.pipeline.result import Result
from dxc.report.console import print_comparison, print_package, print_result
from dxc.report.progress import Progress, Standing
from dxc.search.ledger import Entry
from dxc.text import visible
from dxc.tracking.store import Store
from tests.test_text import FORBIDDEN, NAMES

STORED = {name: shown for name, shown in NAMES.items() if not re.search("[\ud800-\udfff]", name)}
MACHINE = "\x1b]0;owned\x07 [/bold] </pre><script>alert(1)</script> $x$ | =1"
STUDY = "few"


def _store(store_file: Path) -> str:
    """A study of one run a name, all of them on the front, with hostile tags and params too."""
    uri = f"sqlite:///{store_file}"
    client = MlflowClient(uri)
    experiment = client.create_experiment(STUDY, artifact_location=(store_file.parent / "files").as_uri())
    for number, name in enumerate(STORED):
        tags = {
            "dxc.trial": f"{number:012x}",
            "dxc.design": f"{number:012x}",
            "dxc.kind": "trial",
            "dxc.state": "finished",
            "dxc.predicted_for": MACHINE,
            "data": name,
        }
        run = client.create_run(experiment, run_name=name, tags=tags)
        values = {"accuracy": 0.5 + 0.01 * number, "latency_ms": 1.0 + number, "onnx_mb": 2.0 + number}
        client.log_batch(
            run.info.run_id,
            metrics=[Metric(key, value, 0, 0) for key, value in values.items()],
            params=[Param("model.pool", name), Param("optimizer.lr", str(-0.5 * number))],
            tags=[RunTag("model", "resnet18")],
        )
        client.set_terminated(run.info.run_id)
    return uri


def _on_a_terminal(command: list[str]) -> str:
    """What a command writes to a terminal that knows no colours."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "400", "PYTHONUTF8": "1"}
    chunks: list[bytes] = []

    def read() -> None:
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the other end is closed
                return
            if not chunk:
                return
            chunks.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    done = subprocess.run(
        command, cwd=PROJECT_ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=env, timeout=240
    )
    os.close(theirs)
    reader.join(timeout=10)
    os.close(ours)
    written = b"".join(chunks).decode()
    assert done.returncode == 0, written
    return written.replace("\r\n", "\n")


class Page(HTMLParser):
    """A page's elements, attributes and text."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.long
def test_an_analysis_of_hostile_names(store_file: Path, tmp_path: Path) -> None:
    uri = _store(store_file)
    written = _on_a_terminal(
        [
            sys.executable,
            "analyze.py",
            f"study={STUDY}",
            f"tracking.uri={uri}",
            f"cache_dir={tmp_path}/cache",
            f"out={tmp_path}/reports",
            "log=false",
            "choose.by=accuracy",
        ]
    )
    folder = tmp_path / "reports" / STUDY

    # the terminal: tqdm's carriage returns and rich's line ends aside, nothing but text; the columns stay in line
    lines = [line.rsplit("\r", 1)[-1] for line in written.split("\n")]
    assert not FORBIDDEN.search("\n".join(lines))
    start = lines.index(next(line for line in lines if line.startswith("front")))
    rows = [next(line for line in lines[start:] if f"{name} " in line) for name in STORED.values()]
    assert len({cell_len(row) for row in rows}) == 1
    assert f"predicted: latency for {visible(MACHINE)}" in lines
    assert f"choice:    {list(STORED.values())[-1]}: the largest accuracy" in lines

    answer = (folder / "answer.txt").read_text()
    assert not FORBIDDEN.search(answer) and f"predicted: latency for {visible(MACHINE)}\n" in answer

    with (folder / "front.csv").open(newline="") as file:
        heading, *rows = csv.reader(file)
    assert heading[:4] == ["design", "accuracy (fraction)", "predicted latency (ms)", "ONNX file (MB)"]
    assert {row[0].removeprefix("'") for row in rows} == set(STORED.values())
    assert not [cell for row in rows for cell in row if cell[0] in "=+@\t\r"]
    rates = {float(row[heading.index("optimizer.lr")]) for row in rows}
    assert rates == {-0.5 * number for number in range(len(STORED))}

    html = MarkdownIt("commonmark").enable("table").render((folder / "front.md").read_text())
    found = Page(html)
    assert set(found.tags) == {"table", "thead", "tbody", "tr", "th", "td", "p"} and not found.attributes
    assert {shown.strip() for shown in STORED.values()} <= {each.strip() for each in found.texts}
    assert f"predicted: latency for {visible(MACHINE)}" in found.texts

    text = (folder / "front.tex").read_text()
    assert not re.search(r"^[\[*]", text, re.MULTILINE) and not FORBIDDEN.search(text)
    assert r"{[}abcdef123456{]} &" in text or r"{[}abcdef123456] &" in text

    page = Page((folder / "index.html").read_text())
    assert page.tags.count("script") == 3 and not {"img", "a", "iframe"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert f"predicted: latency for {visible(MACHINE)}" in page.texts
    assert set(STORED.values()) <= set(page.texts)
    assert not FORBIDDEN.search("".join(page.texts[: page.texts.index("Trade-offs")]))

    for name in ("pairs", "radar", "main_effects"):
        svg = (folder / f"{name}.svg").read_text()
        ElementTree.fromstring(svg)
        assert not FORBIDDEN.search(svg)
        with Image.open(folder / f"{name}.png") as image:
            assert min(image.size) > 300
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == [STUDY]


EVIL = "\x1b[2J[/bold] :smile: \u202e$1$"
SHOWN = r"\x1b[2J[/bold] :smile: \u202e$1$"


def test_a_result_a_package_and_a_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of regions, packages, devices and files in what train.py, calibrate.py and python -m dxc.hardware print."""
    monkeypatch.setenv("COLUMNS", "200")
    print_result(
        Result(
            name=EVIL,
            metrics={"accuracy": 0.5, "latency_ms": 1.0, f"latency_ms/{EVIL}": 1.0, "latency_ms/b": 1.0},
            source=EVIL,
            score="accuracy",
            fold_scores={EVIL: 0.5},
            predictions=pd.DataFrame(),
            onnx=tmp_path / EVIL,
            excluded=0,
            notes=(f"not measured: {EVIL}\nin two lines",),
            run_id="r",
            experiment_id="1",
            tracking_uri="sqlite:///x",
            study=EVIL,
            predicted_for=EVIL,
            measured_on=EVIL,
        )
    )
    printed = capsys.readouterr().out
    assert printed.count(SHOWN) == 9 and not FORBIDDEN.search(printed)
    assert f"note:             not measured: {SHOWN}\nin two lines\n" in printed

    errors = {"n": 3, "within_5_percent": 0.5, "within_10_percent": 0.9, "mape": 0.05}
    about = dict.fromkeys(
        ("networks", "minutes_measuring", "minutes_fitting", "networks_too_noisy", "threads"), 1
    )
    about |= dict.fromkeys(("device", "runtime", "runtime_version"), EVIL)  # type: ignore[arg-type]
    about |= dict.fromkeys(("rank_correlation", "reference_spread"), 0.9)  # type: ignore[arg-type]
    held_out = {"kernels": {EVIL: errors}, "all": {"networks": errors}}
    (tmp_path / "package.json").write_text(json.dumps({**about, "held_out": held_out}))
    print_package(tmp_path)
    printed = capsys.readouterr().out
    assert printed.count(SHOWN) == 4 and not FORBIDDEN.search(printed)

    row = {
        "file": EVIL,
        "latency_ms": 1.0,
        "measured": f"invalid: {EVIL}",
        "measured_latency_ms": float("nan"),
    }
    print_comparison(pd.DataFrame([row]), [f"{EVIL} has no predictor"])
    printed = capsys.readouterr().out
    assert printed.count(SHOWN) == 2 and not FORBIDDEN.search(printed)


def test_a_search(capsys: pytest.CaptureFixture[str], tmp_path: Path, store_file: Path) -> None:
    progress = Progress("first", ["accuracy", "latency_ms"], "accuracy")
    progress.infeasible(EVIL, EVIL)
    progress.dry_run([(EVIL, {"latency_ms": 1.0}, EVIL)], seconds=1, trials=1, parallel=1)
    entry = Entry(trial="0" * 12, run_id="r", state="finished", overrides=[], number=1)
    entry.metrics = {"accuracy": 0.5, "latency_ms": 1.0}
    store = Store(f"sqlite:///{store_file}", "first", patience_s=0)
    progress.end(
        [(EVIL, entry)],
        objectives=["accuracy", "latency_ms"],
        origins={"trained": {EVIL: 1}, "predicted": {EVIL: 1, "x" * 400: 2}},
        counts={"finished": 1},
        store=store,
        complete=True,
        folder=tmp_path,
        standing=Standing(1, 0, 0, 1, 1, False),
    )
    printed = capsys.readouterr().out
    assert f"\npredicted: latency for {SHOWN} (1 run) | {'x' * 299}… (2 runs)\n" in printed
    assert printed.count(SHOWN) == 7 and not FORBIDDEN.search(printed)
    assert "predicted latency (ms)" in printed
