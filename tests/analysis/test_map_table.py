"""What designs do to a map: a table a ranking, of maps that can be compared alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient

from dxc.analysis.analyze import tracked_runs
from dxc.analysis.designs import parse_objectives, require_comparable
from dxc.analysis.mapped import map_table
from dxc.analysis.questions import Questions
from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.errors import AnalysisError
from dxc.report.map_table import maps_in_text, print_map_table

CPU = "AMD EPYC, 4 cores; onnxruntime 1.31.1, cpu, 1 thread"
NE, IL = "dem.tif, photo.tif (1111)", "dem.tif, photo.tif (2222)"
# name of the design, area, mode, fold: recall at 1 false alarm a km2, recall, precision, seconds a km2
MAPS = [
    ("small", NE, "corridor", "NE", 0.90, 0.95, 0.80, 2.0),
    ("large", NE, "corridor", "NE", 0.96, 0.97, 0.92, 7.5),
    ("small", IL, "corridor", "IL", 0.99, 0.99, 0.99, 2.0),
    ("small", NE, "chips", "NE", 0.80, 0.90, 0.50, 9.0),
    ("small", NE, "corridor", "", 1.0, 1.0, 1.0, 2.0),  # by a network that saw NE
    ("large", NE, "corridor", "NE", 0.97, 0.98, 0.92, 7.0),  # the same map once more
]


def _store(store_file: Path, *, maps: bool = True) -> str:
    uri = f"sqlite:///{store_file}"
    client = MlflowClient(uri)
    experiment = client.create_experiment(
        "first", artifact_location=(store_file.parent / "mlartifacts").as_uri()
    )
    runs = {}
    for letter, (name, accuracy, latency) in zip(
        "ab", (("small", 0.9, 2.5), ("large", 0.99, 9.0)), strict=True
    ):
        tags = {
            "dxc.trial": letter * 12, "dxc.design": letter * 12, "dxc.data": "d" * 16, "dxc.kind": "trial",
            "dxc.state": "finished",
        }  # fmt: skip
        runs[name] = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        for key, value in {"accuracy": accuracy, "latency_ms": latency, "onnx_mb": 1.0}.items():
            client.log_metric(runs[name], key, value)
        client.set_terminated(runs[name])
    for name, area, mode, fold, at_alarms, recall, precision, seconds in MAPS * maps:
        tags = {
            "dxc.kind": "map", "dxc.state": "finished", "dxc.mapped": area, "dxc.map_mode": mode, "dxc.map_fold": fold,
            "dxc.mapped_by": name + fold, "dxc.network_run": runs[name], "dxc.measured_on": CPU,
        }  # fmt: skip
        run = client.create_run(experiment, run_name="map", tags=tags).info.run_id
        values = {
            "map_recall_at_false_alarms": at_alarms, "map_recall": recall, "map_precision": precision,
            "seconds_per_km2": seconds,
        }  # fmt: skip
        for key, value in values.items():
            client.log_metric(run, key, value)
        for key, value in {"stride_m": "8", "alarms_per_km2": "1"}.items():
            client.log_param(run, key, value)
        client.set_terminated(run)
    return uri


def _asked(store: str, *overrides: str) -> Questions:
    folder = Path(store.removeprefix("sqlite:///")).parent
    common = [
        f"tracking.uri={store}", f"cache_dir={folder}/cache", f"out={folder}/reports", "log=false", "study=first",
        "table=map",
    ]  # fmt: skip
    with initialize_config_dir(str(PROJECT_ROOT / "conf" / "analysis"), version_base="1.3"):
        return Questions.of(resolved(compose("analyze", overrides=[*common, *overrides])))


def test_maps_are_ranked_among_those_of_one_area_mode_and_fold(
    store_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, folder = map_table(_asked(_store(store_file)))
    frame = table.frame
    shown = frame[["ranking", "rank", "name", "area", "mode", "fold"]].to_numpy().tolist()
    assert shown == [
        [1, 1, "large", NE, "corridor", "NE"],
        [1, 2, "small", NE, "corridor", "NE"],
        [2, 1, "small", IL, "corridor", "IL"],
        [3, 1, "small", NE, "chips", "NE"],
        [4, 1, "small", NE, "corridor", ""],
    ]
    assert frame["map_recall_at_false_alarms"].tolist()[:2] == [0.97, 0.90]  # the newest of two equal maps
    text = maps_in_text(frame[frame["ranking"] == 1])
    assert list(text) == [
        "rank",
        "design",
        "accuracy (fraction)",
        "predicted latency (ms)",
        "map recall at fixed false alarms (fraction)",
        "map recall (fraction)",
        "map precision (fraction)",
        "measured mapping time (s/km2)",
    ]
    assert text.iloc[0].tolist() == ["1", "large", "0.9900", "9.00", "0.97", "0.98", "0.92", "7.00"]
    assert {f"maps_{number}.csv" for number in (1, 2, 3, 4)} <= {path.name for path in folder.iterdir()}
    said = (folder / "maps_1.md").read_text()
    assert "mode corridor, a window every 8 m, by networks that did not see NE" in said
    differing = frame.assign(
        stride_m=range(5),
        threshold=[0.5, 0.5, 0.1, 0.5, 0.5],
        calibrate=["auto", *["none"] * 4],
        every_window=["true", *["false"] * 4],
        refine=["true", *["false"] * 4],
        machine=list("abcde"),
    )
    shown = maps_in_text(differing)
    assert list(shown)[-6:] == ["stride (m)", "threshold", "calibrate", "every window", "refine", "machine"]
    assert shown["threshold"].tolist()[:3] == ["0.5", "0.5", "0.1"]
    assert "4 rankings: maps of different areas, modes, folds and corridors" in table.lines[-1]
    print_map_table(frame, folder, title=table.title, lines=table.lines)
    printed = capsys.readouterr().out
    assert "5 maps by designs of first" in printed and "mode chips" in printed


def test_only_the_tables_of_before_are_removed(store_file: Path) -> None:
    asked = _asked(_store(store_file), "where='accuracy > 0.95'")
    folder = Path(asked.out) / "first"
    folder.mkdir(parents=True)
    own = ["maps_4.md", "maps_4.tex", "maps_12.csv"]
    others = ["maps_compared.md", "maps_compared.csv", "maps_NE.gpkg", "maps_2.gpkg", "maps_2_evaluation.md"]
    for name in own + others:
        (folder / name).write_text("before")
    map_table(asked)
    assert {path.name for path in folder.iterdir()} == {"maps_1.md", "maps_1.tex", "maps_1.csv", *others}


def test_a_wide_corridor_is_ranked_apart(store_file: Path) -> None:
    store = _store(store_file)
    client = MlflowClient(store)
    (experiment,) = [each for each in client.search_experiments() if each.name == "first"]
    for run in client.search_runs([experiment.experiment_id]):
        tags = run.data.tags
        if tags["dxc.kind"] == "map" and tags["dxc.map_mode"] == "corridor":
            wide = tags["dxc.mapped_by"] == "largeNE"
            client.set_tag(
                run.info.run_id, "dxc.map_roads", f"{50 if wide else 15} m beside roads.gpkg (1234)"
            )
    table, folder = map_table(_asked(store))
    frame = table.frame[table.frame["area"] == NE]
    assert frame[["ranking", "rank", "name", "mode", "fold"]].to_numpy().tolist()[:2] == [
        [1, 1, "small", "corridor", "NE"],
        [2, 1, "large", "corridor", "NE"],
    ]
    assert "mode corridor 50 m beside roads.gpkg (1234)," in (folder / "maps_2.md").read_text()


def test_where_selects_designs_and_no_map_is_said(store_file: Path) -> None:
    store = _store(store_file)
    table, folder = map_table(_asked(store, "where='accuracy > 0.95'"))
    assert table.frame["name"].tolist() == ["large"] and table.lines == []
    assert not (folder / "maps_2.md").exists()
    with pytest.raises(
        AnalysisError, match=r"no run of first with accuracy > 0.995 has a map .* pick=front truth="
    ):
        map_table(_asked(store, "where='accuracy > 0.995'"))


def test_studies_without_maps(store_file: Path) -> None:
    with pytest.raises(
        AnalysisError, match="no run of first has a map that was compared with true crossings"
    ):
        map_table(_asked(_store(store_file, maps=False)))


def test_a_map_is_an_objective_where_maps_are_of_one_area(store_file: Path) -> None:
    """Values in the designs' own runs, as map.py writes them; those of two areas are refused."""
    uri = _store(store_file, maps=False)
    asked = _asked(uri)
    runs, *_ = tracked_runs(asked)
    with pytest.raises(
        AnalysisError, match=r"no run logged map_recall; python map.py study=NAME pick=front truth="
    ):
        parse_objectives(["map_recall"], runs)
    client = MlflowClient(uri)
    for run_id, recall, area in zip(runs["run_id"], (0.9, 0.95), (NE, IL), strict=True):
        client.log_metric(run_id, "map_recall", recall)
        client.set_tag(run_id, "dxc.mapped", area)
    runs, *_ = tracked_runs(_asked(uri, "refresh=true"))
    objectives = parse_objectives(["map_recall", "latency_ms"], runs)
    with pytest.raises(AnalysisError, match="dxc.mapped .the rasters that were mapped.: .*1111.*2222"):
        require_comparable(runs, objectives, [])
    client.set_tag(runs["run_id"].iloc[1], "dxc.mapped", NE)
    runs, *_ = tracked_runs(_asked(uri, "refresh=true"))
    require_comparable(runs, objectives, [])
