"""What is known of a space before anything is trained, by hand: counts, the nearest point, seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

import dxc.training.speed as speed
from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.errors import SearchError
from dxc.search import space_summary as module
from dxc.search.settings import DEFAULT_TRIALS
from dxc.search.space import Axis, Identity, Space, network_hash
from dxc.search.space_summary import Chips, SpaceSummary, _data_points, _line, prepare_chips
from tests.conftest import ChipMaker

WIDTHS = (24, 8, 48, 16, 40, 32)


class _Identity(Identity):
    @property
    def plan(self) -> Any:
        """What seconds_per_image is given here."""
        return SimpleNamespace(width=self.config["model"]["width"])


class _Catalogue:
    """Six networks of one knob, width, each in two batch sizes; each channel has 10 MACs and 0.25 MB."""

    def __init__(self) -> None:
        self.space = Space(
            (
                Axis("model.width", tuple(map(str, WIDTHS))),
                Axis("data.batch_size", ("8", "16")),
            ),
            (),
        )

    def identity(self, point: tuple[int, ...]) -> Identity:
        width, batch = WIDTHS[point[0]], (8, 16)[point[1]]
        config = {
            "model": {"_target_": "dxc.models.resnet.ResNet", "width": width, "blocks": 2},
            "data": {"channels": ["dem"], "batch_size": batch, "size": 20},
            "trainer": {"max_epochs": 3},
        }
        return _Identity(f"t{width}-{batch}", f"d{width}", f"n{width}", config)

    def distinct(self) -> dict[str, tuple[int, ...]]:
        return {self.identity(point).trial: point for point in self.space.points()}


def _summary(
    *, limits: Mapping[str, float] | None = None, refused: Mapping[str, str] | None = None, **settings: Any
) -> SpaceSummary:
    def known(network: str, config: dict[str, Any]) -> dict[str, float]:
        if network in (refused or {}):
            return {}
        return {"macs": 10.0 * config["model"]["width"], "onnx_mb": 0.25 * config["model"]["width"]}

    catalogue = _Catalogue()
    defaults = {"tuner": "random", "max_trials": None, "seed": 0, "limits": limits or {}}
    costs = SimpleNamespace(compute=lambda *_, **__: None, of=known, refused=refused or {})
    return SpaceSummary(catalogue.space, catalogue, SimpleNamespace(**defaults | settings), costs)  # type: ignore[arg-type]


def test_counts_by_hand() -> None:
    """At most 6 MB: widths 8, 16 and 24 of six; one of these cannot be built."""
    summary = _summary(limits={"onnx_mb": 6.0}, refused={"n8": "too small"})
    assert summary.counts() == {"points": 12, "trials": 12, "networks": 6, "infeasible": 8}
    assert summary.feasible == ["t24-8", "t24-16", "t16-8", "t16-16"]
    assert [why for _, _, why in summary.table()[:3]] == ["", "", "too small"]
    assert summary.table()[-1][1:] == (
        {"macs": 320.0, "onnx_mb": 8.0},
        "onnx_mb 8 is over the limit of 6 (search.limits.onnx_mb)",
    )
    summary.require_feasible()


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"tuner": "grid"}, 12),
        ({"tuner": "random"}, 12),
        ({"tuner": "grid", "max_trials": 5}, 5),
        ({"tuner": "random", "max_trials": 50}, 12),
        ({"tuner": "random", "limits": {"onnx_mb": 6.0}}, 6),
    ],
)
def test_how_many_trials_a_study_is_to_have(settings: dict[str, Any], wanted: int) -> None:
    assert _summary(**settings).wanted() == wanted


def test_a_space_that_is_too_large_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHOLE_SPACE", 12)
    assert _summary().whole
    monkeypatch.setattr(module, "WHOLE_SPACE", 11)
    monkeypatch.setattr(module, "SAMPLE", 5)
    summary = _summary(seed=1)
    assert not summary.whole
    assert 1 <= len(summary.trials) <= 5
    assert list(summary.trials) == list(_summary(seed=1).trials)
    assert list(summary.trials) != list(_summary(seed=2).trials)
    assert all(summary.identity(trial).trial == trial for trial in summary.trials)
    # of what is not known as a whole, as many as are asked for
    assert summary.wanted() == DEFAULT_TRIALS
    assert _summary(tuner="grid").wanted() == DEFAULT_TRIALS
    assert _summary(max_trials=500).wanted() == 500


def test_nothing_feasible_says_how_near_it_is() -> None:
    """At most 1 MB and 100 MACs: width 8 has 2 MB, twice too much, and 80 MACs; wider ones are over both."""
    with pytest.raises(SearchError) as raised:
        _summary(limits={"onnx_mb": 1.0, "macs": 100}, refused={"n48": "too large"}).require_feasible()
    lines = str(raised.value).splitlines()
    assert lines[1:4] == [
        "  search.limits.onnx_mb=1 rules out 10 of 12",
        "  search.limits.macs=100 rules out 8 of 12",
        "  no network can be built rules out 2 of 12",
    ]
    assert lines[4] == "The nearest is resnet18 w8, 1ch b8 with onnx_mb 2."
    assert (
        lines[5] == "The smallest ONNX file in this space is 2 MB, at model.width=8; the limit is 1 MB"
    )  # 80 MACs are within their limit
    with pytest.raises(SearchError) as raised:
        _summary(refused={f"n{width}": "no" for width in WIDTHS}).require_feasible()
    assert "no network can be built rules out 12 of 12" in str(raised.value)
    assert "nearest" not in str(raised.value)


class _ManyNetworks:
    """Two knobs: latency is 0.01 ms x width / stride, less by 2 % where both are small."""

    def __init__(self) -> None:
        widths = tuple(map(str, range(8, 88, 8)))
        self.space = Space((Axis("model.width", widths), Axis("model.stride", tuple("12345"))), ())

    def identity(self, point: tuple[int, ...]) -> Identity:
        width, stride = 8 + 8 * point[0], 1 + point[1]
        model = {"_target_": "dxc.models.resnet.ResNet", "width": width, "stride": stride}
        name = f"{width}-{stride}"
        return Identity(name, name, name, {"model": model, "data": {"size": 20}})

    def distinct(self) -> dict[str, tuple[int, ...]]:
        return {self.identity(point).trial: point for point in self.space.points()}


class _Costs:
    """Computes what _ManyNetworks says, and counts."""

    def __init__(self, refused: Mapping[str, str] | None = None) -> None:
        self.computed: dict[str, dict[str, float]] = {}
        self.refusing = refused or {}
        self.refused: dict[str, str] = {}

    def missing(self, networks: Any) -> list[str]:
        return [name for name in networks if name not in self.computed and name not in self.refused]

    def compute(self, networks: Mapping[str, Any], **_: Any) -> None:
        for name, config in networks.items():
            if name in self.refusing:
                self.refused[name] = self.refusing[name]
                continue
            width, stride = config["model"]["width"], config["model"]["stride"]
            self.computed[name] = {
                "latency_ms": 0.01 * width / stride * (0.98 if width == 8 and stride > 3 else 1),
                "params": 100.0 * width,
            }

    def of(self, network: str, config: Mapping[str, Any]) -> dict[str, float]:
        if self.missing([network]):
            self.compute({network: config})
        return self.computed.get(network, {})


def _many(costs: _Costs, **limits: float) -> SpaceSummary:
    catalogue = _ManyNetworks()
    settings = SimpleNamespace(tuner="random", max_trials=None, seed=0, limits=limits)
    return SpaceSummary(catalogue.space, catalogue, settings, costs)  # type: ignore[arg-type]


def test_costs_of_a_space_are_estimated_from_a_few_networks() -> None:
    costs = _Costs()
    summary = _many(costs, latency_ms=0.44)
    summary.estimate_costs()
    computed = len(costs.computed)
    assert module.COMPUTED <= computed <= module.COMPUTED + 4  # and the ends of each cost
    for trial in summary.trials:
        width, stride = map(int, trial.split("-"))
        known = summary.known(summary.identity(trial))
        assert known["latency_ms"] == pytest.approx(0.01 * width / stride, rel=0.03)
        assert known["params"] == pytest.approx(100 * width, rel=0.001)
    assert summary.counts()["infeasible"] == 5  # 48 to 80 at stride 1
    assert len(costs.computed) == computed
    assert f"estimated from {computed} of 50 networks" in summary.estimated()
    summary.forget_estimates()
    assert summary.estimated() == ""
    assert summary.trials and len(costs.computed) < 50
    _ = _many(costs).trials
    assert len(costs.computed) == 50


def test_a_limit_that_nothing_meets_is_said_from_estimates() -> None:
    costs = _Costs()
    summary = _many(costs, latency_ms=0.01, params=1e6)
    summary.estimate_costs()
    with pytest.raises(SearchError) as raised:
        summary.require_any_within_limits()
    message = str(raised.value)
    assert "search.limits.latency_ms=0.01" in message
    assert "The smallest latency in this space is 0.0157 ms, at model.stride=5 model.width=8" in message
    assert "the limit is 0.01 ms" in message and "Nothing was trained" in message
    assert len(costs.computed) < 50
    # too near to be certain of: all are computed first
    near = _many(costs, latency_ms=0.0157)
    near.estimate_costs()
    near.require_any_within_limits()
    # what is counted comes before what is predicted
    both = _many(_Costs(), latency_ms=0.001, params=10)
    both.estimate_costs()
    with pytest.raises(SearchError, match=r"search.limits.params=10:"):
        both.require_any_within_limits()


def test_nothing_is_estimated_where_a_network_cannot_be_built() -> None:
    costs = _Costs({"8-1": "too small"})  # the first, which is always computed
    summary = _many(costs)
    summary.estimate_costs()
    assert summary.estimated() == "" and len(costs.computed) < 25


def test_seconds_of_training_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image takes a millisecond a MAC to train and a tenth of it to validate: on a line, so every width is exact."""
    timed = []

    def seconds_per_image(plan: Any) -> tuple[float, float]:
        timed.append(plan.width)
        return 1e-2 * plan.width, 1e-3 * plan.width

    monkeypatch.setattr(speed, "seconds_per_image", seconds_per_image)
    monkeypatch.setattr(module, "fitted", lambda plan: plan)
    chips = Chips({"section": "hash"}, ["chips of x"], folds=5, train_images=400, val_images=100)
    seconds = _summary().estimate(chips)
    each = 3 * (400 * 1e-2 + 100 * 1e-3)  # three epochs
    assert seconds == pytest.approx(2 * sum(WIDTHS) * each)
    assert sorted(timed) == [8, 16, 32, 48]  # of the twelve by MACs, the first, fourth, eighth and last
    timed.clear()
    assert _summary(limits={"onnx_mb": 2.0}).estimate(chips) == pytest.approx(2 * 8 * each)
    assert set(timed) == {8}


class _Compressed:
    """Networks of 1000 MACs a channel, pruned by half (250 MACs) or not, and quantised or not. What is quantised has no
    latency."""

    def __init__(self, widths: int = 1) -> None:
        self.space = Space(
            (
                Axis("compress.fraction", ("0", "0.5")),
                Axis("compress.quantise", ("none", "static")),
                Axis("model.width", tuple(str(1 + each) for each in range(widths))),
            ),
            (),
        )

    def identity(self, point: tuple[int, ...]) -> Identity:
        fraction, kind, width = (0, 0.5)[point[0]], ("none", "static")[point[1]], 1 + point[2]
        compress = {"fraction": fraction, "quantise": kind, "align": 1, "finetune_epochs": 2}
        config = {
            "model": {"_target_": "dxc.models.resnet.ResNet", "width": width},
            "compress": compress,
            "data": {"channels": ["dem"], "batch_size": 8, "size": 20},
            "trainer": {"max_epochs": 3},
        }
        name = f"{fraction}-{kind}-{width}"
        return _Identity(name, name, network_hash(config), config)

    def distinct(self) -> dict[str, tuple[int, ...]]:
        return {self.identity(point).trial: point for point in self.space.points()}


class _CompressedCosts(_Costs):
    def compute(self, networks: Mapping[str, Any], **_: Any) -> None:
        for name, config in networks.items():
            compress = config["compress"]
            factor = (0.25 if compress["fraction"] else 1.0) * config["model"]["width"]
            float32 = compress["quantise"] == "none"
            self.computed[name] = {"macs": 1000.0 * factor, "onnx_mb": factor * (8 if float32 else 2)}
            if float32:
                self.computed[name]["latency_ms"] = factor


def _compressed(catalogue: _Compressed, costs: _Costs, **settings: Any) -> SpaceSummary:
    defaults = {"tuner": "grid", "max_trials": None, "seed": 0, "limits": {}}
    given = SimpleNamespace(**defaults | settings)
    return SpaceSummary(catalogue.space, catalogue, given, costs)  # type: ignore[arg-type]


def test_seconds_of_finetuning_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is trained once for four trials, and the pruned network fine-tuned once for two."""
    timed = []

    def seconds_per_image(plan: Any, model: str = "whole") -> tuple[float, float]:
        timed.append(model)
        return {"whole": (1e-2, 1e-3), "pruned": (4e-3, 5e-4)}[model]

    monkeypatch.setattr(speed, "seconds_per_image", seconds_per_image)
    monkeypatch.setattr(module, "fitted", lambda plan: plan)
    monkeypatch.setattr(module, "untrained_network", lambda plan: "pruned")
    chips = Chips({"section": "hash"}, ["chips of x"], folds=5, train_images=400, val_images=100)
    summary = _compressed(_Compressed(), _CompressedCosts())
    assert len(summary.feasible) == 4
    base, tuned = 3 * (400 * 1e-2 + 100 * 1e-3), 2 * (400 * 4e-3 + 100 * 5e-4)
    assert summary.estimate(chips) == pytest.approx(base + tuned)
    assert sorted(set(timed)) == ["pruned", "whole"]
    assert summary.most_finetuning == 2
    assert _summary().most_finetuning == 0
    config = summary.identity(summary.feasible[-1]).config
    steps = {**config, "compress": {**config["compress"], "steps": 3}}
    assert [epochs for _, epochs in module.trainings_of(steps)] == [None, 2, 2, 2]


def test_objectives_that_some_networks_lack_are_said_once() -> None:
    settings = {"objectives": ["accuracy", "latency_ms", "onnx_mb"]}
    (line,) = _compressed(_Compressed(), _CompressedCosts(), **settings).unknown_objectives()
    assert line == (
        "2 of 4 networks have no latency_ms: predictors describe kernels in float32, and these are quantised. They are "
        "judged by accuracy and onnx_mb alone. hardware.measure=true measures the latency of each trial"
    )
    assert not _compressed(
        _Compressed(), _CompressedCosts(), objectives=["accuracy", "onnx_mb"]
    ).unknown_objectives()


def test_costs_of_compressed_networks_are_estimated() -> None:
    """Estimates know of fractions and quantisation, and none gives a quantised network a latency."""
    costs = _CompressedCosts()
    summary = _compressed(_Compressed(widths=16), costs)
    summary.estimate_costs()
    assert summary.estimated() and len(costs.computed) < 64 == len(summary.networks)
    for trial in summary.trials:
        fraction, kind, width = trial.split("-")
        known = summary.known(summary.identity(trial))
        factor = (0.25 if float(fraction) else 1.0) * int(width)
        assert known["onnx_mb"] == pytest.approx(factor * (8 if kind == "none" else 2), rel=0.05)
        if kind == "none":
            assert known["latency_ms"] == pytest.approx(factor, rel=0.05)
        else:
            assert "latency_ms" not in known


@pytest.mark.parametrize(
    ("macs", "seconds", "at", "expected"),
    [
        ([300.0, 100.0], [7.0, 3.0], 150.0, 4.0),  # in any order
        ([100.0, 300.0], [3.0, 7.0], 300.0, 7.0),
        ([100.0, 300.0, 400.0], [3.0, 7.0, 8.0], 500.0, 9.0),  # on the last piece
        ([100.0, 300.0], [3.0, 7.0], 50.0, 3.0),  # never less than the least
        ([100.0], [3.0], 900.0, 3.0),
    ],
)
def test_a_line_between_and_beyond_what_was_timed(
    macs: list[float], seconds: list[float], at: float, expected: float
) -> None:
    assert _line(np.array(macs), np.array(seconds), at) == pytest.approx(expected)


def test_chips_of_every_variant_are_read(make_chips: ChipMaker, tmp_path: Path) -> None:
    """Two sets of channels, in batches of two sizes: ten chips, in two folds."""
    root = make_chips(size=20)
    read = ["[dem]", "[dem,red]"]

    def identity(point: tuple[int, ...]) -> Identity:
        overrides = [
            f"data.channels={read[point[0]]}", f"data.batch_size={(2, 4)[point[1]]}", "data.size=20",
            "data.folds=2", "source=chips", f"source.root={root}", f"cache_dir={tmp_path}/cache", "progress=false",
        ]  # fmt: skip
        with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
            return Identity("", "", "", resolved(compose("train", overrides=overrides)))

    axes = (Axis("data", ("5ch", "7ch")), Axis("data.batch_size", ("2", "4")))
    chips = prepare_chips(SimpleNamespace(space=Space(axes, ()), identity=identity))  # type: ignore[arg-type]
    assert len(chips.hashes) == 1  # the same files
    assert (chips.folds, chips.train_images, chips.val_images) == (2, 10, 10)
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2


def test_a_dry_run_makes_no_chips_that_can_be_counted_before(make_chips: ChipMaker, tmp_path: Path) -> None:
    """16 synthetic chips, in two folds; those of a folder have to be read."""
    root = make_chips(size=20)

    def chips_of(*source: str) -> Chips:
        overrides = [*source, "data.folds=2", f"cache_dir={tmp_path}/cache", "progress=false"]

        def identity(point: tuple[int, ...]) -> Identity:
            with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
                return Identity("", "", "", resolved(compose("train", overrides=overrides)))

        space = Space((Axis("model.width", ("8", "16")),), ())
        return prepare_chips(SimpleNamespace(space=space, identity=identity), dry_run=True)  # type: ignore[arg-type]

    planned = chips_of("source=synthetic", "source.chips=16")
    assert (planned.folds, planned.train_images, planned.val_images, planned.hashes) == (2, 16, 16, [])
    assert planned.titles == ["16 synthetic chips (seed 0)"] and not (tmp_path / "cache").exists()
    read = chips_of("source=chips", f"source.root={root}", "data.size=20")
    assert (read.folds, read.train_images, len(read.hashes)) == (2, 10, 1)


def test_points_that_differ_in_their_chips() -> None:
    axes = [("model.width", 3), ("data", 2), ("source.root", 2), ("data.batch_size", 2), ("database", 2)]
    catalogue = SimpleNamespace(
        space=Space(tuple(Axis(key, tuple(map(str, range(count)))) for key, count in axes), ())
    )
    points = list(_data_points(catalogue))  # type: ignore[arg-type]
    assert points == [(0, a, b, c, 0) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
