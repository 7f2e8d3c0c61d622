"""Several maps of one command: a run with the networks of two folds, each of which maps its own region."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient

from dxc.config.compose import PROJECT_ROOT
from dxc.errors import AnalysisError, ConfigError, DataError, TrackingError
from dxc.evaluation.crossings import BlockCounts
from dxc.mapping.finding import Finder
from dxc.mapping.network import network_of
from dxc.mapping.run import make_map
from dxc.mapping.settings import MapSettings
from dxc.mapping.several import asked_maps, make_maps, require_all
from dxc.report.map_page import maps_in_text, print_maps
from dxc.tracking.run import start_run
from tests.mapping.world import CROSSINGS, write_network, write_world

FOLDS = ("IL", "NE")


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IL/ and NE/: alike, but for a crossing of NE that truth does not know."""
    root = tmp_path_factory.mktemp("regions")
    for fold in FOLDS:
        write_world(root / fold)
    known = gpd.read_file(root / "NE" / "truth.gpkg")
    known.iloc[:4].to_file(root / "NE" / "truth.gpkg")
    return root


def _start_run(
    store: Path, folder: Path, *, name: str = "one", folds: tuple[str, ...] = FOLDS, **more: Any
) -> str:
    """A run with a network in model.onnx and in folds/, each a file of its own content."""
    files = folder / f"files of {name}"
    for number, path in enumerate(["model.onnx", *(f"folds/{fold}.onnx" for fold in folds)]):
        (files / path).parent.mkdir(parents=True, exist_ok=True)
        write_network(files / path, trial=f"{number:012x}")
    frame = pd.DataFrame({"label": np.tile([0, 1], 40), "fold": np.repeat(FOLDS, 40)})
    frame["probability"] = np.where(frame["label"] == 1, 0.9, 0.2)
    frame.to_parquet(files / "predictions.parquet")
    tags = {"dxc.kind": "trial", "dxc.state": "finished", "dxc.exported_fold": "NE", **more.pop("tags", {})}
    params = {"data.split": more.pop("split", "region")}
    with start_run(f"sqlite:///{store}", study="first", name=name, params=params, tags=tags) as run:
        run.log(more.pop("metrics", {}))
        run.log_files(files)
    return run.run_id


def _asked(store: Path, regions: Path, *overrides: str) -> list[MapSettings]:
    folder = store.parent
    given = [
        f"photo={regions}/${{fold}}/photo.tif", f"truth={regions}/${{fold}}/truth.gpkg", "stride_m=8",
        f"out={folder}/maps/${{fold}}.gpkg", "photo_bands=[red,green,blue]", "progress=false", "threads=1",
        f"tracking.uri=sqlite:///{store}", f"cache_dir={folder}/cache",
    ]  # fmt: skip
    names = {each.partition("=")[0] for each in overrides}
    given = [each for each in given if each.partition("=")[0] not in names]
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        return asked_maps(compose("map", overrides=[*given, *overrides]))


@pytest.mark.long
def test_one_fold_is_mapped_by_the_network_that_did_not_see_it(
    store_file: Path, regions: Path, tmp_path: Path
) -> None:
    run_id = _start_run(store_file, tmp_path)
    (settings,) = _asked(store_file, regions, f"run={run_id}", "fold=IL")
    assert settings.out == tmp_path / "maps" / "IL.gpkg"
    assert settings.photo == [regions / "IL" / "photo.tif"]
    network = network_of(settings, tmp_path)
    assert network.path.read_bytes() == (tmp_path / "files of one" / "folds" / "IL.onnx").read_bytes()
    report = make_map(settings)
    assert report.crossings == len(CROSSINGS)
    assert report.network.why.endswith("the network that did not see IL")
    # a network is not calibrated on chips of the ground that it maps
    assert "on 40 out-of-fold predictions of other folds than IL of run" in report.probabilities
    with pytest.raises(AnalysisError, match=r"fold=CA: run .* has no network of this fold; it has IL, NE\.$"):
        make_map(_asked(store_file, regions, f"run={run_id}", "fold=CA", f"photo={regions}/NE/photo.tif")[0])


def test_without_fold_files_only_the_exported_fold_is_there(
    store_file: Path, regions: Path, tmp_path: Path
) -> None:
    run_id = _start_run(store_file, tmp_path, folds=())
    (settings,) = _asked(store_file, regions, f"run={run_id}", "fold=NE")
    network = network_of(settings, tmp_path)
    assert network.path.read_bytes() == (tmp_path / "files of one" / "model.onnx").read_bytes()
    (settings,) = _asked(store_file, regions, f"run={run_id}", "fold=IL")
    with pytest.raises(
        AnalysisError, match="it has NE. The same train.py command, with data.split=region and fold_files"
    ):
        network_of(settings, tmp_path)
    with pytest.raises(AnalysisError, match="has no networks of its folds. The same train.py command,"):
        _asked(store_file, regions, f"run={run_id}", "fold=all")


@pytest.mark.long
def test_all_folds_are_one_table(
    store_file: Path, regions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = _start_run(store_file, tmp_path)
    made = make_maps(_asked(store_file, regions, f"run={run_id}", "fold=all", "alarms_per_km2=15"))
    require_all(made)
    table = made.table().set_index("fold")
    assert list(table.index) == ["IL", "NE", "pooled"]
    # NE has a point that no crossing of truth explains
    assert table["truth"].tolist() == [5, 4, 9] and table["points"].tolist() == [5, 5, 10]
    assert table["recall"].tolist() == [1, 1, 1]
    np.testing.assert_allclose(table["precision"], [1, 4 / 5, 9 / 10])
    km2 = table["km2"].to_numpy()
    assert km2[2] == pytest.approx(km2[0] + km2[1])
    np.testing.assert_allclose(table["false_alarms_per_km2"], [0, 1 / km2[1], 1 / km2[2]])
    assert 1 / km2[1] < 15
    assert table["map_recall_at_false_alarms"].tolist() == [1, 1, 1]
    print_maps(made)
    printed = capsys.readouterr().out
    assert "pooled: 2 of 2 regions" in printed and "NE_evaluation" in printed
    assert "1 (0.9" not in printed  # squares of 500 m: fewer than five have no interval
    text = (tmp_path / "maps" / "maps_compared.md").read_text()
    assert "| pooled" in text and "fixed false alarms: 15 a km2" in text
    assert not list((tmp_path / "maps").glob(".*"))  # nothing is kept of a command that has ended

    client = MlflowClient(f"sqlite:///{store_file}")
    runs = client.search_runs([client.get_experiment_by_name("first").experiment_id])
    maps = {each.data.tags["dxc.map_fold"]: each for each in runs if each.data.tags["dxc.kind"] == "map"}
    assert maps.keys() == {"IL", "NE"}
    assert {each.data.tags["dxc.network_run"] for each in maps.values()} == {run_id}
    assert maps["NE"].data.params["fold"] == "NE" and maps["NE"].info.run_name == "map of NE"
    assert maps["IL"].data.tags["dxc.mapped_by"] != maps["NE"].data.tags["dxc.mapped_by"]
    # the run of the design gets what all folds say of it
    design = client.get_run(run_id).data
    assert design.metrics["map_precision"] == pytest.approx(9 / 10)
    assert design.tags["dxc.map_fold"] == "IL, NE" and design.tags["dxc.mapped"].startswith("IL, NE (")


@pytest.mark.long
def test_an_error_of_one_region_does_not_stop_the_others(
    store_file: Path, regions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = _start_run(store_file, tmp_path)
    few = tmp_path / "regions"
    for fold in FOLDS:
        (few / fold).mkdir(parents=True)
        (few / fold / "truth.gpkg").write_bytes((regions / fold / "truth.gpkg").read_bytes())
    (few / "NE" / "photo.tif").write_bytes((regions / "NE" / "photo.tif").read_bytes())
    asked = _asked(
        store_file, regions, f"run={run_id}", "fold=all", f"photo={few}/${{fold}}/photo.tif"
    )  # fmt: skip
    made = make_maps(asked)
    table = made.table().set_index("fold")
    assert list(table.index) == ["IL", "NE"]  # nothing to pool
    assert table.loc["NE", "recall"] == 1 and "IL/photo.tif" in table.loc["IL", "error"]
    assert maps_in_text(made.table())["map"].tolist() == ["not made", "made"]
    with pytest.raises(DataError, match="1 of 2 maps could not be made"):
        require_all(made)
    client = MlflowClient(f"sqlite:///{store_file}")
    assert "map_recall" not in client.get_run(run_id).data.metrics

    # the same command goes on: NE is not computed again, nor tracked twice, and keeps the time that it took
    (few / "IL" / "photo.tif").write_bytes((regions / "IL" / "photo.tif").read_bytes())
    computed: list[str] = []
    find = Finder.find

    def counting(self: Finder, tile: Any) -> Any:
        computed.append("tile")
        return find(self, tile)

    monkeypatch.setattr(Finder, "find", counting)
    again = make_maps(asked)
    require_all(again)
    assert len(computed) == 1
    after = again.table().set_index("fold")
    assert list(after.index) == ["IL", "NE", "pooled"]
    assert after.loc["NE", "seconds_per_km2"] == pytest.approx(table.loc["NE", "seconds_per_km2"])
    runs = client.search_runs([client.get_experiment_by_name("first").experiment_id])
    assert sorted(each.data.tags.get("dxc.map_fold", "") for each in runs if each.data.tags["dxc.kind"] == "map") == [
        "IL", "NE",
    ]  # fmt: skip
    # a map of an earlier command is not replaced
    refused = make_maps(asked)
    assert [each.error.endswith("replace it with overwrite=true.") for each in refused.maps] == [True, True]
    assert refused.files is None


def test_names_of_folds_are_data(
    store_file: Path,
    regions: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They come from a store: what OmegaConf or a path would follow is left out."""
    monkeypatch.setenv("SECRET", "of_this_machine")
    run_id = _start_run(
        store_file, tmp_path, folds=(*FOLDS, "IL and NE", "${oc.env:SECRET}", "${bad", "..", "-x")
    )
    asked = _asked(store_file, regions, f"run={run_id}", "fold=all")
    assert [each.fold for each in asked] == ["IL", "IL and NE", "NE"]
    assert "'${oc.env:SECRET}'" in caplog.text and "of_this_machine" not in caplog.text


@pytest.mark.long
def test_a_fold_that_was_not_exported_is_a_row(store_file: Path, regions: Path, tmp_path: Path) -> None:
    run_id = _start_run(store_file, tmp_path, folds=("NE",), tags={"dxc.exported_fold": "NE"})
    made = make_maps(_asked(store_file, regions, f"run={run_id}", "fold=all", "log=false"))
    assert [(each.settings.fold, each.report is None) for each in made.maps] == [("IL", True), ("NE", False)]
    assert made.maps[0].error.endswith(
        "it has NE. It was trained and could not be exported: the notes of the run say why."
    )


@pytest.mark.parametrize(
    ("split", "says"), [("kfold", "data.split=kfold"), ("holdout", "data.split=holdout")]
)
def test_folds_that_are_no_regions_are_refused(
    split: str, says: str, store_file: Path, regions: Path, tmp_path: Path
) -> None:
    run_id = _start_run(store_file, tmp_path, split=split)
    told = f"{says}. Only with data.split=region is a fold a region"
    with pytest.raises(AnalysisError, match=told):
        _asked(store_file, regions, f"run={run_id}", "fold=all")
    (settings,) = _asked(store_file, regions, f"run={run_id}", "fold=NE")
    with pytest.raises(AnalysisError, match=told):
        network_of(settings, tmp_path)


@pytest.mark.long
def test_another_map_is_not_taken_for_that_of_the_command_before(
    store_file: Path, regions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that failed leaves what it kept; only the same command may go on with the maps that it made."""
    run_id = _start_run(store_file, tmp_path)
    given = [f"run={run_id}", "fold=[IL,NE]", "calibrate=none"]
    (tmp_path / "few" / "NE").mkdir(parents=True)
    for name in ("photo.tif", "truth.gpkg"):
        (tmp_path / "few" / "NE" / name).write_bytes((regions / "NE" / name).read_bytes())
    few = [f"photo={tmp_path}/few/${{fold}}/photo.tif", f"truth={tmp_path}/few/${{fold}}/truth.gpkg"]
    made = make_maps(_asked(store_file, regions, *given, *few, "log=false"))
    assert [bool(each.error) for each in made.maps] == [True, False]

    other = make_maps(_asked(store_file, regions, *given, *few, "log=false", "threshold=0.6"))
    assert other.maps[1].error.endswith("replace it with overwrite=true.")
    # what a command did not track is tracked by the next one
    tracked: list[str] = []
    monkeypatch.setattr("dxc.mapping.run.track", lambda settings, *_, **__: tracked.append(settings.fold))
    for _ in range(2):
        again = make_maps(_asked(store_file, regions, *given, *few, "overwrite=true"))
        assert not again.maps[1].error
    assert tracked == ["NE"]
    # other crossings are another map
    known = gpd.read_file(tmp_path / "few" / "NE" / "truth.gpkg")
    known.iloc[:3].to_file(tmp_path / "few" / "NE" / "truth.gpkg")
    make_maps(_asked(store_file, regions, *given, *few, "overwrite=true"))
    assert tracked == ["NE", "NE"]


@pytest.mark.long
def test_a_map_that_cannot_be_tracked_is_made_and_tracked_by_the_next_call(
    store_file: Path, regions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = _start_run(store_file, tmp_path)
    asked = _asked(store_file, regions, f"run={run_id}", "fold=all")

    def busy(*_: Any, **__: Any) -> None:
        raise TrackingError("the store is busy")

    with monkeypatch.context() as patched:
        patched.setattr("dxc.mapping.run.track", busy)
        made = make_maps(asked)
        assert maps_in_text(made.table())["map"].tolist() == [
            "made, not tracked",
            "made, not tracked",
            "made",
        ]
        assert ("not tracked", "NE: the store is busy") in made.said() and "no map" not in dict(made.said())
        with pytest.raises(DataError, match="2 of 2 maps could not be made or tracked"):
            require_all(made)
        with pytest.raises(
            TrackingError, match=r"NE.gpkg is made, but not tracked: the store is busy\nTo track it"
        ):
            make_map(asked[1].model_copy(update={"overwrite": True}))
    monkeypatch.setattr(Finder, "find", busy)  # nothing is computed again
    with monkeypatch.context() as patched:
        patched.setattr("dxc.mapping.several.record_in_design", busy)
        require_all(make_maps(asked))
    assert list((tmp_path / "maps").glob(".*"))  # the pooled figures are still to be written
    require_all(make_maps(asked))
    assert not list((tmp_path / "maps").glob(".*"))
    client = MlflowClient(f"sqlite:///{store_file}")
    assert "map_recall" in client.get_run(run_id).data.metrics
    runs = client.search_runs([client.get_experiment_by_name("first").experiment_id])
    assert sum(each.data.tags["dxc.kind"] == "map" for each in runs) == 2


def test_a_dense_pass_is_fitted_on_another_region(store_file: Path, regions: Path, tmp_path: Path) -> None:
    run = f"run={_start_run(store_file, tmp_path)}"
    asked = _asked(store_file, regions, run, "fold=all", "mode=dense")
    fitted = {each.fold: [(fit.photo, fit.crossings) for fit in each.fit] for each in asked}
    own = {each.fold: [(each.photo, each.truth)] for each in asked}
    assert fitted == {"IL": own["NE"], "NE": own["IL"]}
    given = _asked(store_file, regions, run, "fold=all", "mode=dense", "screen_logit=-3")
    assert not any(each.fit for each in given)
    assert not any(each.fit for each in _asked(store_file, regions, run, "fold=all"))
    two = "fit=[{photo:a.tif,crossings:a.gpkg},{photo:b.tif,crossings:b.gpkg}]"
    listed = _asked(store_file, regions, run, "fold=NE", two)
    assert [str(fit.crossings) for fit in listed[0].fit] == ["a.gpkg", "b.gpkg"]
    assert listed[0].way == "dense"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["fold=all", "out=maps/map.gpkg"],
            r"map.gpkg would be the result of several maps. Put \$\{fold\} in out",
        ),
        (["fold=all", "photo=photo.tif"], r"photo.tif would be mapped by the networks of several folds"),
        (["fold=[IL,NE]", "photo=photo.tif"], r"photo.tif would be mapped by the networks of several folds"),
        (["fold=[]"], "fold is an empty list"),
        ([], r"\$\{fold\} stands in a path, and no fold is given"),
        (
            ["fold=all", "mode=dense", "fit=[{photo:REGIONS/NE/photo.tif,crossings:a.gpkg}]"],
            "the threshold of fold=NE would be fitted on the region that it maps",
        ),
        (
            ["fold=NE", "mode=dense", "fit=[{photo:REGIONS/NE/,crossings:a.gpkg}]"],
            "the threshold of fold=NE would be fitted on the region that it maps",
        ),
        (["run=null", "onnx=a.onnx", "fold=NE"], "fold=NE chooses a network of a run or a study"),
        (["fold=all", "corridor_m=-1"], "corridor_m must be a number over 0"),
        (["fold=NE", "fit=3"], r"fit must be a list of regions, \[\{dem:FILE"),
        (["fold=NE", "fit=[3]"], r"fit\[0\] must be a section with keys, not 3"),
        (
            ["fold=NE", "fit={dem:a.tif,truth:b.gpkg}"],
            r"fit\[0\] has no truth; it has crossings, .*dem, dem_units, photo",
        ),
    ],
)
def test_mistakes_are_said(
    overrides: list[str], says: str, store_file: Path, regions: Path, tmp_path: Path
) -> None:
    run_id = _start_run(store_file, tmp_path)
    given = [each.replace("REGIONS", str(regions)) for each in overrides]
    run = [] if any(each.startswith("run=") for each in given) else [f"run={run_id}"]
    with pytest.raises(ConfigError, match=says):
        _asked(store_file, regions, *run, *given)


@pytest.mark.long
def test_each_design_of_the_front_has_a_map(
    store_file: Path, regions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []
    for number, (accuracy, latency) in enumerate(((0.9, 2.0), (0.97, 5.0), (0.8, 6.0))):
        letter = "abc"[number] * 12
        tags = {"dxc.trial": letter, "dxc.design": letter}
        metrics = {"accuracy": accuracy, "latency_ms": latency, "onnx_mb": 1.0}
        runs.append(_start_run(store_file, tmp_path, name=f"network {number}", tags=tags, metrics=metrics))
    one = [f"photo={regions}/NE/photo.tif", f"truth={regions}/NE/truth.gpkg", f"out={tmp_path}/map.gpkg"]
    asked = _asked(store_file, regions, "study=first", "pick=front", *one)
    # network 2 is worse in both; the most accurate comes first
    assert [each.run for each in asked] == [runs[1], runs[0]]
    assert [each.out.name for each in asked] == [f"map_{'b' * 12}.gpkg", f"map_{'a' * 12}.gpkg"]
    made = make_maps(asked)
    require_all(made)
    table = made.table()
    assert table["design"].tolist() == ["network 1", "network 0"] and table["fold"].tolist() == ["", ""]
    assert maps_in_text(table).columns[0] == "design"
    print_maps(made)
    assert "pooled" not in capsys.readouterr().out
    # each is the only map of its design, which it judges
    client = MlflowClient(f"sqlite:///{store_file}")
    for run_id, maps in ((runs[0], 1), (runs[2], 0)):
        assert ("map_recall" in client.get_run(run_id).data.metrics) == bool(maps)

    # each region by the networks that did not see it, with each design
    both = _asked(store_file, regions, "study=first", "pick=front", "fold=all")
    assert [(each.run, each.fold) for each in both] == [
        (runs[1], "IL"), (runs[1], "NE"), (runs[0], "IL"), (runs[0], "NE")
    ]  # fmt: skip
    assert both[0].out.name == f"IL_{'b' * 12}.gpkg"


def test_pooled_figures_by_hand() -> None:
    """Blocks of two maps, drawn together: more precise than either, and the figures of all points."""
    first = BlockCounts(
        *(np.array(each, float) for each in ([1, 1, 2], [4, 2, 2], [4, 1, 1], [5, 1, 2], [4, 1, 1]))
    )
    second = BlockCounts(
        *(np.array(each, float) for each in ([1, 1, 1], [2, 0, 4], [2, 0, 2], [2, 1, 3], [2, 0, 2]))
    )
    alone, pooled = first.figures(15), BlockCounts.joined([first, second]).figures(15)
    assert pooled.hits == 10
    assert pooled.recall.value == pytest.approx(10 / 14)
    assert pooled.precision.value == pytest.approx(10 / 14)
    assert pooled.false_alarms_per_km2.value == pytest.approx(4 / 7)
    assert np.isnan(alone.recall.low)  # three blocks are too few, six are not
    assert 0.4 < pooled.recall.low < pooled.recall.value < pooled.recall.high <= 1
    assert pooled.false_alarms_per_road_km is None
    roads = BlockCounts(*(np.ones(2) for _ in range(5)), road_km=np.array([2.0, 4.0]))
    assert BlockCounts.joined([roads, roads]).road_km.tolist() == [2, 4, 2, 4]  # type: ignore[union-attr]
    assert BlockCounts.joined([roads, first]).road_km is None


def test_nothing_of_a_run_that_is_not_there(store_file: Path, regions: Path) -> None:
    with pytest.raises(TrackingError, match="no such run"):
        make_map(_asked(store_file, regions, f"run={'0' * 32}", "fold=NE")[0])
