"""A study in MLflow's own UI as a person sees it, in headless Chromium; pictures go to DXC_SCREENSHOTS if that is set.

The runs are recorded as train.py and search.py record them, with figures made up here; analyze.py tags them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dxc.config.compose import PROJECT_ROOT
from dxc.config.plan import Plan
from dxc.pipeline.heading import heading
from dxc.search.ledger import STATUS
from dxc.tracking.record import Record
from dxc.tracking.run import Sink, start_run
from dxc.tracking.store import Store
from dxc.tracking.view import UI, VIEW, view_address
from tests.slurm.services import mlflow_server

pytestmark = pytest.mark.browser

STUDY = "first"
CHIPS, FOLDS = 1000, 5
DATA_HASH = "09240bd60541ec91"


class Made(NamedTuple):
    """A run: what was asked for, what came out, and the rank that the analysis has to find."""

    overrides: str
    right: int
    latency_ms: float
    onnx_mb: float
    rank: int

    @property
    def accuracy(self) -> float:
        return self.right / CHIPS


TRAINED = {
    "resnet18 k3 s2 p1 w32, 7ch b16": Made("data=7ch data.batch_size=16", 964, 8.19, 11.187, 1),
    "resnet18 k3 s2 p1 w32, 5ch b8": Made("data=5ch data.batch_size=8", 961, 8.13, 11.181, 1),
    "resnet18 k5 s2 p1 w32, 7ch b8": Made("data=7ch data.batch_size=8 model.kernel=5", 955, 8.92, 11.21, 2),
    "resnet18 k3 s2 p1 w16, 7ch b8": Made("data=7ch data.batch_size=8 model.width=16", 940, 3.04, 2.811, 1),
}
SEARCHED = {
    "resnet18 k5 s2 p1 w16, 5ch b8": Made(
        "data=5ch data.batch_size=8 model.kernel=5 model.width=16", 931, 3.91, 2.829, 2
    ),
    "resnet18 k3 s2 p1 w8, 5ch b16": Made("data=5ch data.batch_size=16 model.width=8", 902, 1.17, 0.715, 1),
}
MADE = {**TRAINED, **SEARCHED}
STOPPED = "resnet18 k7 s2 p1 w8, 5ch b16"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with four runs of train.py, a search with two finished trials and a stopped one, and their analysis."""
    folder = tmp_path_factory.mktemp("ui")
    uri = f"sqlite:///{folder}/mlflow.db"
    for name, made in TRAINED.items():
        out = folder / name
        with start_run(uri, **_asked(made.overrides, uri, out)) as run:
            _found(run, made, out)
            run.log_files(out)

    store = Store(uri, STUDY, patience_s=0)
    parent = store.create(STUDY, {"dxc.kind": "study", "dxc.study": STUDY})
    for name, made in SEARCHED.items():
        out = folder / name
        heading = _asked(made.overrides, uri, out)
        run_id = store.create(heading["name"], {**heading["tags"], "dxc.kind": "trial"}, parent=parent)
        record = Record(folder / "trials" / name)
        with record.opened(uri, **heading):
            _found(record, made, out)
        store.upload(run_id, record, files=out, tags={"dxc.state": "finished"})
        store.status(run_id, "FINISHED")
    heading = _asked("data=5ch data.batch_size=16 model.kernel=7 model.width=8", uri, folder / STOPPED)
    state = {"dxc.kind": "trial", "dxc.state": "stopped"}
    stopped = store.create(heading["name"], {**heading["tags"], **state}, parent=parent)
    store.status(stopped, STATUS["stopped"])
    store.status(parent, "FINISHED")

    done = subprocess.run(
        [
            *(sys.executable, "analyze.py", f"study={STUDY}", "tag=true", f"tracking.uri={uri}"),
            *(f"out={folder}/reports", f"cache_dir={folder}/cache"),
        ],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "6 designs of first, 4 on the front" in done.stdout
    return uri


def _asked(overrides: str, uri: str, out: Path) -> dict[str, Any]:
    """What train.py records such a run under; its configuration goes to the folder `out`."""
    words = [
        *overrides.split(),
        f"source.chips={CHIPS}",
        f"study={STUDY}",
        f"tracking.uri={uri}",
        "hardware=cpu",
    ]
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        plan = Plan.of(compose("train", overrides=words))
    out.mkdir()
    OmegaConf.save(OmegaConf.create(plan.values()), out / "config.yaml")
    return heading(plan, plan)


def _found(run: Sink, made: Made, out: Path) -> None:
    """What a run says while it is computed: metrics, curves, tags, and the other files in `out`."""
    place = np.arange(CHIPS)
    label, right = place % 2, place < made.right
    predictions = pd.DataFrame(
        {
            "region": "NE",
            "name": [f"NE_{number:04d}" for number in place],
            "label": label,
            "fold": [f"fold{1 + number % FOLDS}" for number in place],
            "probability": np.where(right == (label == 1), 0.9, 0.1),
        }
    )
    predictions.to_parquet(out / "predictions.parquet")
    (out / "model.onnx").write_bytes(b"onnx")
    accuracies = pd.Series(right).groupby(predictions["fold"]).mean()
    curves = [
        (name, end * growth**epoch, epoch)
        for name, end, growth in (
            ("val_accuracy", made.accuracy / 1.01**5, 1.01),
            ("val_loss", 0.6, 0.7),
            *((f"val_accuracy.{fold}", each / 1.01**5, 1.01) for fold, each in accuracies.items()),
        )
        for epoch in range(1, 6)
    ]
    run.tag({"dxc.data": DATA_HASH, "dxc.measured_on": "this machine"})
    run.log_dataset("1,000 synthetic chips (seed 0)", DATA_HASH, {"chips": CHIPS, "seed": 0})
    run.log({"accuracy": made.accuracy, "accuracy_std": float(accuracies.std()), "f1": made.accuracy}, curves)
    run.log({"onnx_mb": made.onnx_mb, "params": 1e6 * made.onnx_mb / 4, "fit_seconds": 300})
    run.log({"latency_ms": made.latency_ms, "measured_latency_ms": made.latency_ms * 1.25})


@pytest.fixture(scope="module")
def server(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server"), uri) as url:
        yield url


@pytest.fixture
def visit(browser: Any, server: str) -> Iterator[Callable[..., Any]]:
    """visit(address, new): the UI in a tab, without any network but the server's. new: it is the first visit; on later
    ones the UI remembers that its assistant was closed and Model training chosen. Nothing may go wrong meanwhile."""
    contexts, messages, outside = [], [], []

    def allow(route: Any) -> None:
        if route.request.url.startswith((server, "data:", "blob:")):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    def opened(address: str, *, new: bool = False) -> Any:
        context = browser.new_context(viewport={"width": 1920, "height": 1000})
        contexts.append(context)
        context.set_default_timeout(60_000)
        context.route("**/*", allow)
        if not new:
            context.add_init_script(
                "if (window === top) {"
                "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');"
                "localStorage.setItem('mlflow.workflowType_v1', '\"machine_learning\"');}"
            )
        tab = context.new_page()
        tab.on("pageerror", lambda error: messages.append(str(error)))
        tab.goto(address)
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert [message for message in messages if "ResizeObserver" not in message] == []
    assert outside == []


@pytest.fixture
def address(uri: str, server: str) -> str:
    """The address that dxc prints, on this server."""
    store = Store(uri, STUDY, patience_s=0)
    return view_address(server, store.experiment_id)


def _table(tab: Any) -> dict[str, dict[str, str]]:
    """Run name -> column -> text, from top to bottom, of the runs table as far as it is drawn."""
    cells = tab.evaluate(
        "[...document.querySelectorAll('.ag-row .ag-cell')].map(cell => "
        "[cell.parentElement.getAttribute('row-index'), cell.getAttribute('col-id'), cell.innerText])"
    )
    rows: dict[str, dict[str, str]] = {}
    for row, column, text in cells:
        rows.setdefault(row, {})[column] = text.strip().rpartition("\n")[2]
    return {rows[row].pop("attributes.`Run Name`"): rows[row] for row in sorted(rows, key=int)}


def _run_link(tab: Any, name: str) -> Any:
    return tab.locator(".ag-cell").get_by_role("link", name=name, exact=True)


def test_the_way_from_the_front_page(visit: Callable[..., Any], server: str, pictures: Path) -> None:
    """Model training, the study; then the link of its description, or Views, designs."""
    tab = visit(server, new=True)
    tab.get_by_role("button", name="Close", exact=True).click()  # the assistant, on the first visit
    tab.get_by_text("Model training", exact=True).click()
    tab.get_by_role("link", name=STUDY, exact=True).click()
    for name in (*TRAINED, STUDY, f"analysis of {STUDY}"):
        _run_link(tab, name).wait_for()
    assert tab.get_by_text(f"python analyze.py study={STUDY} tag=true").is_visible()
    with tab.context.expect_page() as opened:
        tab.get_by_role("link", name="Designs side by side").click()
    _run_link(opened.value, next(iter(SEARCHED))).wait_for()
    opened.value.wait_for_timeout(500)
    assert set(_table(opened.value)) == set(MADE)
    tab.screenshot(path=pictures / "mlflow_study.png")
    tab.get_by_role("button", name="Views").click()
    tab.get_by_text(VIEW, exact=True).click()
    _run_link(tab, next(iter(SEARCHED))).wait_for()
    tab.wait_for_timeout(500)
    assert list(_table(tab)) == sorted(MADE, key=lambda name: -MADE[name].accuracy)


def test_designs_and_their_front(visit: Callable[..., Any], address: str, pictures: Path) -> None:
    tab = visit(address)
    for name in MADE:
        _run_link(tab, name).wait_for()
    tab.wait_for_timeout(500)
    tab.screenshot(path=pictures / "mlflow_designs.png")
    table = _table(tab)
    assert table.keys() == MADE.keys(), "no stopped trial, study or analysis is a design"
    for name, made in MADE.items():
        row = table[name]
        assert float(row["metrics.`accuracy`"]) == made.accuracy
        assert float(row["metrics.`latency_ms`"]) == made.latency_ms
        assert float(row["metrics.`onnx_mb`"]) == made.onnx_mb
        assert row["tags.`dxc.rank`"] == str(made.rank)
        assert row["tags.`dxc.front`"] == str(made.rank == 1).lower()
        assert row["tags.`data`"] in name
        assert f" k{row['params.`model.kernel`']} " in name
    shown = {column for row in table.values() for column in row}
    assert len(shown) < 20 and not any("_target_" in column or "fold" in column for column in shown)

    search = tab.get_by_placeholder("metrics.rmse < 1")
    search.fill("tags.dxc.front = 'true'")
    search.press("Enter")
    _run_link(tab, "resnet18 k5 s2 p1 w32, 7ch b8").wait_for(state="detached")
    tab.wait_for_timeout(500)
    tab.screenshot(path=pictures / "mlflow_front.png")
    assert set(_table(tab)) == {name for name, made in MADE.items() if made.rank == 1}


def test_charts_begin_with_accuracy_against_costs(
    visit: Callable[..., Any], address: str, pictures: Path
) -> None:
    tab = visit(f"{address}&compareRunsMode=CHART")
    tab.get_by_text("latency_ms vs. accuracy", exact=True).wait_for()
    tab.locator(".js-plotly-plot .trace").first.wait_for()
    tab.wait_for_timeout(500)
    tab.screenshot(path=pictures / "mlflow_charts.png")
    titles = ("latency_ms vs. accuracy", "onnx_mb vs. accuracy", re.compile("^Model metrics"))
    places = [_edges(tab.get_by_text(title).first)[0] for title in titles]
    assert places[0] == places[1] < places[2]


def test_one_run(visit: Callable[..., Any], address: str, pictures: Path) -> None:
    name, made = next(iter(SEARCHED.items()))
    tab = visit(address)
    _run_link(tab, name).click()
    tab.get_by_role("heading", name=name).wait_for()
    for metric, value in (("accuracy", made.accuracy), ("latency_ms", made.latency_ms)):
        row = tab.get_by_role("row").filter(has=tab.get_by_role("link", name=metric, exact=True))
        row.get_by_text(str(value), exact=True).wait_for()
    for tag in ("dxc.front: false", "dxc.rank: 2", f"dxc.data: {DATA_HASH}", "data: 5ch"):
        tab.get_by_text(tag, exact=True).wait_for()
    tab.screenshot(path=pictures / "mlflow_run.png")
    tab.get_by_role("tab", name="Model metrics").click()
    tab.get_by_text("val_accuracy", exact=True).first.wait_for()
    tab.locator(".js-plotly-plot .trace").first.wait_for()
    tab.wait_for_timeout(500)
    tab.screenshot(path=pictures / "mlflow_curves.png")
    tab.get_by_role("tab", name="Artifacts").click()
    for file in ("model.onnx", "predictions.parquet", "config.yaml"):
        tab.get_by_text(file, exact=True).wait_for()
    tab.get_by_text("config.yaml", exact=True).click()
    tab.get_by_text("kernel: 5").wait_for()
    tab.screenshot(path=pictures / "mlflow_artifacts.png")


def test_runs_compared(visit: Callable[..., Any], address: str, pictures: Path) -> None:
    chosen = list(TRAINED)[:3]
    tab = visit(address)
    for name in chosen:
        _run_link(tab, name).wait_for()
    rows = list(_table(tab))
    for name in chosen:
        row = tab.locator(f".ag-row[row-index='{rows.index(name)}']")
        row.get_by_label("toggle row selection").check()
    tab.get_by_role("button", name="Compare", exact=True).click()
    tab.get_by_text("Comparing 3 Runs from 1 Experiment").wait_for()
    tab.screenshot(path=pictures / "mlflow_compare.png")
    names = tab.get_by_role("row").filter(has_text="Run Name:")
    order = [name for name in names.get_by_role("cell").all_inner_texts() if name in MADE]
    assert sorted(order) == sorted(chosen)
    for metric in ("accuracy", "latency_ms"):
        values = _beside(tab, metric)
        tab.screenshot(path=pictures / f"mlflow_compare_{metric}.png")
        assert values == [getattr(MADE[name], metric) for name in order]


def _beside(tab: Any, metric: str) -> list[float]:
    """A metric's values from left to right in the compared runs. They lie in a grid of a few rows that scrolls; its
    names stay one scroll event behind its values (MLflow 3.17), so the steps are as small as a mouse's are."""
    name, values = tab.get_by_role("link", name=metric, exact=True), tab.get_by_role("grid").last
    values.hover()
    top, bottom = _edges(values)
    for _ in range(200):
        if name.count() and top < _edges(name)[0] and _edges(name)[1] < bottom:
            break
        tab.mouse.wheel(0, 10)
        tab.wait_for_timeout(30)
    middle = sum(_edges(name)) / 2
    cells = [(*_edges(cell), cell.inner_text()) for cell in values.locator("[style*=absolute]").all()]
    return [float(text) for top, bottom, text in cells if text and top < middle < bottom]


def _edges(part: Any) -> tuple[float, float]:
    """Its top and bottom on the screen."""
    box = part.bounding_box()
    return box["y"], box["y"] + box["height"]


def test_the_report_of_the_analysis(visit: Callable[..., Any], address: str, pictures: Path) -> None:
    tab = visit(address.partition("?")[0])
    _run_link(tab, f"analysis of {STUDY}").click()
    tab.get_by_role("tab", name="Artifacts").click()
    tab.get_by_text("index.html", exact=True).click()
    page = tab.frame_locator("iframe")
    page.get_by_role("heading", name=f"Pareto front of {STUDY}").wait_for()
    page.locator("#scatter .main-svg").first.wait_for()
    assert page.locator(".front tbody tr").count() == 4
    tab.wait_for_timeout(1000)
    tab.screenshot(path=pictures / "mlflow_report.png")


def test_a_view_of_other_columns(visit: Callable[..., Any], uri: str, server: str, pictures: Path) -> None:
    store = Store(uri, STUDY, patience_s=0)
    columns = ["metrics.onnx_mb", "metrics.fit_seconds", "tags.dxc.rank", "params.model.width"]
    address = store.save_view(columns, order_by="metrics.onnx_mb", ascending=True)
    tab = visit(address.replace(UI, server))
    for name in MADE:
        _run_link(tab, name).wait_for()
    tab.wait_for_timeout(500)
    tab.screenshot(path=pictures / "mlflow_view.png")
    assert list(_table(tab)) == sorted(MADE, key=lambda name: MADE[name].onnx_mb)
    headers = tab.locator(".ag-header-cell")
    headers = sorted((header.bounding_box()["x"], header.inner_text().strip()) for header in headers.all())
    shown = [text for _, text in headers if text]
    assert shown[:2] == ["Run Name", "Created"]
    assert shown[2:6] == ["onnx_mb", "fit_seconds", "dxc.rank", "model.width"]
