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
from dxc.search.space import Axis, Identity, Space
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
            "data": {"channels": ["dem"], "batch_size": batch},
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
    with pytest.raises(SearchError) as raised:
        _summary(refused={f"n{width}": "no" for width in WIDTHS}).require_feasible()
    assert "no network can be built rules out 12 of 12" in str(raised.value)
    assert "nearest" not in str(raised.value)


def test_seconds_of_training_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image takes a millisecond a MAC to train and a tenth of it to validate: on a line, so every width is exact."""
    timed = []

    def seconds_per_image(plan: Any) -> tuple[float, float]:
        timed.append(plan.width)
        return 1e-2 * plan.width, 1e-3 * plan.width

    monkeypatch.setattr(speed, "seconds_per_image", seconds_per_image)
    chips = Chips({"section": "hash"}, folds=5, train_images=400, val_images=100)
    seconds = _summary().estimate(chips)
    each = 3 * (400 * 1e-2 + 100 * 1e-3)  # three epochs
    assert seconds == pytest.approx(2 * sum(WIDTHS) * each)
    assert sorted(timed) == [8, 16, 32, 48]  # of the twelve by MACs, the first, fourth, eighth and last
    timed.clear()
    assert _summary(limits={"onnx_mb": 2.0}).estimate(chips) == pytest.approx(2 * 8 * each)
    assert set(timed) == {8}


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


def test_points_that_differ_in_their_chips() -> None:
    axes = [("model.width", 3), ("data", 2), ("source.root", 2), ("data.batch_size", 2), ("database", 2)]
    catalogue = SimpleNamespace(
        space=Space(tuple(Axis(key, tuple(map(str, range(count)))) for key, count in axes), ())
    )
    points = list(_data_points(catalogue))  # type: ignore[arg-type]
    assert points == [(0, a, b, c, 0) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
