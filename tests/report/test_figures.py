"""The front as figures: what is drawn, against values worked out by hand, and that labels can be read."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from dxc.metrics import METRICS, Metric, label_of, undeclared
from dxc.report.figures import (
    GREY,
    RADARS,
    STYLE,
    VERMILLION,
    is_log,
    knobs_told_apart,
    levels,
    main_effects,
    pairs,
    radar,
    save,
    short_names,
    short_number,
    tick_number,
)

Designs = tuple[pd.DataFrame, dict[str, Metric], list[str]]

pytestmark = pytest.mark.filterwarnings("error")


def _panel(figure: Any, x: str, y: str) -> Any:
    """The panel of a trade-off by what its grey dots and its place in the grid show."""
    order = figure.axes
    grid = {
        (axes.get_subplotspec().rowspan.start, axes.get_subplotspec().colspan.start): axes for axes in order
    }
    last = max(row for row, _ in grid)
    columns = {grid[last, column].get_xlabel().split("\n")[0]: column for column in range(last + 1)}
    rows = {grid[row, 0].get_ylabel().split("\n")[0]: row for row in range(last + 1)}
    return grid[rows[y], columns[x]]


def _bars(axes: Any, member: int) -> list[np.ndarray]:
    """Error bars (horizontal, upright) of the front's first or unstable group as lengths."""
    return [
        np.array([np.abs(segment[1] - segment[0]).max() for segment in bars.get_segments()])
        for bars in axes.containers[member][2]
    ]


@pytest.mark.parametrize("objectives", [2, 3, 4, 5])
def test_a_panel_for_every_two_objectives(by_chance: Callable[..., Designs], objectives: int) -> None:
    designs, known, _ = by_chance(60, objectives)
    figure: Any = pairs(designs, known)
    assert len(figure.axes) == objectives * (objectives - 1) // 2
    drawn = {
        tuple(sorted((axes.lines[-1].get_xdata()[0], axes.lines[-1].get_ydata()[0]))) for axes in figure.axes
    }
    assert len(drawn) == len(figure.axes), "two panels show the same pair"


def test_one_objective_is_no_trade_off(four: Designs) -> None:
    designs, objectives, _ = four
    with pytest.raises(ValueError, match="two objectives"):
        pairs(designs, {"accuracy": objectives["accuracy"]})


def test_labels_have_units_and_directions(four: Designs) -> None:
    designs, objectives, _ = four
    figure = pairs(designs, objectives)
    assert {axes.get_xlabel() for axes in figure.axes} - {""} == {
        "predicted latency (ms)\n← lower is better",
        "ONNX file (MB)\n← lower is better",
    }
    assert {axes.get_ylabel() for axes in figure.axes} - {""} == {
        "accuracy (fraction)\nhigher is better →",
        "ONNX file (MB)\n← lower is better",
    }
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "designs (4)",
        "front (1)",
        "front, unstable (1)",
    ]


def test_front_over_all_designs(four: Designs) -> None:
    designs, objectives, _ = four
    axes = _panel(pairs(designs, objectives), "predicted latency (ms)", "accuracy (fraction)")
    dots = axes.lines[0]
    assert to_hex(dots.get_color()) == GREY.lower()
    np.testing.assert_allclose(dots.get_xydata(), designs[["latency_ms", "accuracy"]])
    sure, unstable = (container[0] for container in axes.containers)
    np.testing.assert_allclose(sure.get_xydata(), [[1.0, 0.90]])
    np.testing.assert_allclose(unstable.get_xydata(), [[2.0, 0.96]])
    assert sure.get_markerfacecolor() == VERMILLION
    assert unstable.get_markerfacecolor() == "white"
    assert sure.get_marker() == unstable.get_marker() != dots.get_marker()


def test_error_bars_are_one_standard_deviation(four: Designs) -> None:
    """a: ± 0.25 ms and ± 0.01; b: latency's spread is not known, so no bar."""
    designs, objectives, _ = four
    axes = _panel(pairs(designs, objectives), "predicted latency (ms)", "accuracy (fraction)")
    across, upright = _bars(axes, 0)
    assert across == pytest.approx([0.5])
    assert upright == pytest.approx([0.02])
    across, upright = _bars(axes, 1)
    assert across == pytest.approx([0.0])
    assert upright == pytest.approx([0.04])


@pytest.mark.parametrize(
    ("maximise", "drawn"), [(False, "steps-post"), (True, "steps-pre")], ids=["cost", "gain"]
)
def test_step_line_of_two_objectives(maximise: bool, drawn: str) -> None:
    """The step ends where the next member begins to be better: after it for a cost, before it for a gain."""
    designs = pd.DataFrame(
        {
            "x": [3.0, 1.0, 2.0, 2.5],
            "accuracy": [0.7, 0.9, 0.8, 0.1] if maximise else [0.9, 0.7, 0.8, 0.1],
            "front": [True, True, True, False],
            "unstable": False,
            "spread.x": 0.1,
            "spread.accuracy": 0.01,
        }
    )
    objectives = {"accuracy": METRICS["accuracy"], "x": undeclared("x", maximise=maximise)}
    figure: Any = pairs(designs, objectives)
    line = figure.axes[0].lines[0]
    assert line.get_drawstyle() == drawn
    assert list(line.get_xdata()) == [1, 2, 3]
    assert list(line.get_ydata()) == ([0.9, 0.8, 0.7] if maximise else [0.7, 0.8, 0.9])


def test_no_step_line_of_three_objectives(four: Designs) -> None:
    designs, objectives, _ = four
    lines = [line for axes in pairs(designs, objectives).axes for line in axes.lines]
    assert {line.get_drawstyle() for line in lines} == {"default"}
    assert {line.get_linestyle() for line in lines} == {"None"}


def test_wide_objectives_are_logarithmic(four: Designs) -> None:
    """ONNX files span a factor 40, latencies 5."""
    designs, objectives, _ = four
    axes = _panel(pairs(designs, objectives), "predicted latency (ms)", "ONNX file (MB)")
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    assert is_log([1, 31])
    assert not is_log([1, 30])
    assert not is_log([0, 31])
    assert not is_log([-1, 31])
    assert not is_log([np.nan, 2])


def test_a_bar_below_zero_ends_with_the_logarithmic_axis(four: Designs) -> None:
    designs, objectives, _ = four
    designs["spread.onnx_mb"] = [20.0, 1.0, 1.0, 1.0]  # a: 10 ± 20
    axes = _panel(pairs(designs, objectives), "ONNX file (MB)", "accuracy (fraction)")
    low, high = axes.get_xlim()
    assert 5 < low < 10
    assert 400 < high < 600


def test_radar_values_by_hand(four: Designs) -> None:
    """b: the best accuracy; latency 2 of 1 to 5 is 3/4 of the way to the best; ONNX 11 of 10 to 400."""
    designs, objectives, knobs = four
    figure = radar(designs, objectives, knobs)
    assert len(figure.axes) == 2
    best, other = (axes.lines[0] for axes in figure.axes)
    expected = [
        1,
        0.75,
        1 - 1 / 390,
        1,
        8 / 24,
    ]  # accuracy, latency, ONNX, kernel, batch size; `data` is no number
    assert best.get_ydata() == pytest.approx([*expected, expected[0]])
    expected = [0.1 / 0.16, 1, 1, 0, 0]
    assert other.get_ydata() == pytest.approx([*expected, expected[0]])
    assert (best.get_linestyle(), other.get_linestyle()) == ("--", "-")
    assert [text.get_text() for text in figure.axes[0].texts] == [
        "accuracy\n0.960",
        "predicted\nlatency\n2",
        "ONNX file\n11",
        "kernel\n5",
        "batch_size\n16",
    ]
    texts = " ".join(text.get_text() for text in figure.texts).replace("\xa0", " ").replace("\n", " ")
    assert "Front members, best accuracy first: 2" in texts
    assert "accuracy 0.800 → 0.960, predicted latency 5 → 1 ms, ONNX file 400 → 10 MB, kernel 3 → 5" in texts
    assert "Dashed: unstable members of the front" in texts


def test_radar_shows_the_best_of_a_long_front(by_chance: Callable[..., Designs]) -> None:
    designs, objectives, knobs = by_chance(400, 4)
    members = designs[designs["front"]].sort_values("accuracy", ascending=False)
    assert len(members) > RADARS
    figure = radar(designs, objectives, knobs)
    assert len(figure.axes) == RADARS
    assert f"{RADARS} of the front's {len(members)}" in figure.texts[0].get_text()
    shown = [axes.texts[0].get_text().split("\n")[1] for axes in figure.axes]
    assert shown == [short_number(value) for value in members["accuracy"].head(RADARS)]


def test_radar_of_what_is_missing_or_constant(four: Designs) -> None:
    designs, objectives, _ = four
    designs["size"], designs["gap"] = 7.0, [np.nan, 2.0, 1.0, 3.0]
    figure: Any = radar(designs, objectives, ["size", "gap"])
    a = figure.axes[1]
    assert a.lines[0].get_ydata()[3:5] == pytest.approx([0.5, 0])
    assert [text.get_text() for text in a.texts[3:]] == ["size\n7", "gap\n–"]


def _factorial(repeats: int = 2) -> pd.DataFrame:
    """Each kernel with each channel set, so many times; accuracy = 0.8, 0.1 more with kernel 5, 0.02 more with 7ch."""
    rows = [(kernel, data) for kernel in (3, 5) for data in ("5ch", "7ch") for _ in range(repeats)]
    designs = pd.DataFrame(rows, columns=["model.kernel", "data"])
    better = 0.1 * (designs["model.kernel"] == 5) + 0.02 * (designs["data"] == "7ch")
    noise = np.tile([0.01, -0.01], len(rows) // 2)
    return designs.assign(accuracy=0.8 + better + noise, latency_ms=1.0, front=True, unstable=False)


def test_main_effects_by_hand() -> None:
    """Residuals are 0.01 in size with 8 - 3 degrees of freedom; a mean is that of four designs."""
    objectives = {name: METRICS[name] for name in ("accuracy", "latency_ms")}
    figure: Any = main_effects(_factorial(), objectives, ["data", "model.kernel"])
    assert len(figure.axes) == 4
    data, kernel = figure.axes[:2]
    assert data.containers[0][0].get_ydata() == pytest.approx([0.85, 0.87])
    assert kernel.containers[0][0].get_ydata() == pytest.approx([0.81, 0.91])
    expected = np.sqrt(8 * 0.01**2 / 5 / 4)
    for axes in (data, kernel):
        assert _bars(axes, 0)[0] / 2 == pytest.approx([expected] * 2)
    # a line between two words would say that there is something between them
    assert data.containers[0][0].get_linestyle() == "None" and kernel.containers[0][0].get_linestyle() == "-"
    ticks = [[text.get_text() for text in axes.get_xticklabels()] for axes in figure.axes[2:]]
    assert ticks == [["5ch\n(4)", "7ch\n(4)"], ["3\n(4)", "5\n(4)"]]
    assert [axes.get_xlabel() for axes in figure.axes[2:]] == ["data", "kernel"]
    assert figure.axes[0].get_ylabel() == "accuracy (fraction)\nhigher is better →"
    for row in range(2):
        assert len({axes.get_ylim() for axes in figure.axes[2 * row : 2 * row + 2]}) == 1


def test_knobs_that_change_together_are_not_drawn(four: Designs) -> None:
    designs = _factorial()
    designs["model.width"] = designs["model.kernel"] * 8
    knobs = ["data", "model.kernel", "model.width"]
    accuracy = {"accuracy": METRICS["accuracy"]}
    assert knobs_told_apart(designs, knobs) == ["data"]
    figure: Any = main_effects(designs, accuracy, knobs, note="predicted: latency")
    assert [axes.get_xlabel() for axes in figure.axes] == ["data"]
    said = " ".join(figure._supxlabel.get_text().split())
    assert (
        said == "Not shown, because they change together with other knobs: kernel, width. predicted: latency"
    )
    assert main_effects(designs, accuracy, knobs[1:]) is None
    assert main_effects(*four) is None  # four designs, four parameters


def test_a_knob_that_means_nothing_in_some_designs() -> None:
    """The size of a pool that is not there is no size, and does not hide the effect of the pool."""
    designs = pd.concat(
        [_factorial(3).assign(**{"model.pool": pool}) for pool in ("none", "max")], ignore_index=True
    )
    designs["model.pool_kernel"] = [*[np.nan] * 12, *[2.0, 3.0] * 6]
    figure: Any = main_effects(
        designs, {"accuracy": METRICS["accuracy"]}, ["model.pool", "model.pool_kernel"]
    )
    pool, size = figure.axes
    assert [text.get_text() for text in pool.get_xticklabels()] == ["max\n(12)", "none\n(12)"]
    assert [text.get_text() for text in size.get_xticklabels()] == ["2\n(6)", "3\n(6)"]


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_no_axis_shows_what_cannot_be(four: Designs, value: float) -> None:
    """Of one design, and of error bars that are wider than what is left up to the bound."""
    designs, objectives, _ = four
    one = designs.head(1).assign(accuracy=value, onnx_mb=0.0, **{"spread.accuracy": 0.9})
    figure = pairs(one, objectives)
    for axes in figure.axes:
        if axes.get_ylabel().startswith("accuracy"):
            assert axes.get_ylim()[0] >= 0 and axes.get_ylim()[1] <= 1
        else:
            assert axes.get_ylim()[0] >= 0
        assert axes.get_xlim()[0] >= 0
    near = _factorial().assign(accuracy=[0.97, 0.999] * 4)
    effects: Any = main_effects(near, {"accuracy": METRICS["accuracy"]}, ["data", "model.kernel"])
    assert effects.axes[0].get_ylim()[1] <= 1


def test_main_effects_of_knobs_with_many_values() -> None:
    """Numbers are put into four ranges, words that are rare are joined; missing ones are left out."""
    rates = pd.DataFrame({"accuracy": np.arange(20.0), "rate": [*range(100, 119), None]})
    accuracy = {"accuracy": METRICS["accuracy"]}
    figure: Any = main_effects(rates, accuracy, ["rate"])
    (rate,) = figure.axes
    labels = [text.get_text().replace("\n", " ") for text in rate.get_xticklabels()]
    assert labels == ["100–104 (5)", "105–109 (5)", "110–114 (5)", "115–118 (4)"]
    words = pd.DataFrame({"accuracy": np.arange(20) / 20, "word": [*"aaabbb", *"cdefghijklmnop"[:14]]})
    figure = main_effects(words, accuracy, ["word"])
    (word,) = figure.axes
    labels = [text.get_text() for text in word.get_xticklabels()]
    assert labels[:2] == ["a (3)", "b (3)"]
    assert labels[-1] == "9 others (9)"
    assert word.containers[0][0].get_ydata()[[0, 1, -1]] == pytest.approx([0.05, 0.2, 0.75])


def test_main_effects_need_a_knob(four: Designs) -> None:
    with pytest.raises(ValueError, match="knob"):
        main_effects(four[0], four[1], [])


def test_names_and_numbers() -> None:
    assert label_of("accuracy", METRICS["accuracy"]) == "accuracy (fraction)"
    assert label_of("onnx_mb", METRICS["onnx_mb"]) == "ONNX file (MB)"
    assert label_of("macs", METRICS["macs"]) == "MACs"
    assert label_of("latency_ms/pi4", METRICS["latency_ms"]) == "predicted latency pi4 (ms)"
    assert label_of("my_score", undeclared("my_score", maximise=False)) == "my_score"
    assert short_names(["data", "data.batch_size", "a.lr", "b.lr"]) == {
        "data": "data",
        "data.batch_size": "batch_size",
        "a.lr": "a.lr",
        "b.lr": "b.lr",
    }
    numbers = {0.93: "0.930", 16: "16", 104.2: "104", 1234.5: "1234", 9.58e7: "95.8M", 5.3e6: "5.30M"}
    numbers |= {20_000: "20k", float("nan"): "–", -0.5: "-0.500"}
    numbers |= {9999.0: "9999", 10_000.0: "10k", 1e9: "1G", 99.94: "99.9", 100.4: "100", 0.0: "0"}
    assert {value: short_number(value) for value in numbers} == numbers
    assert [tick_number(value) for value in (0.1, 3, 300, 3e4, 1e6)] == ["0.1", "3", "300", "30k", "1M"]
    codes, labels = levels(pd.Series(["b", 2, None, 10, "a", 2.5, np.nan], dtype=object))
    assert labels == ["2", "2.5", "10", "a", "b", "–"]
    assert codes.tolist() == [4, 0, 5, 2, 3, 1, 5]


@pytest.mark.parametrize(
    ("values", "wide"),
    [
        ([1.0, 30.0], False),
        ([30.1, 1.0], True),
        ([1.0, np.nan, 31.0], True),
        ([0.0, 100.0], False),
        ([-1.0, 100.0], False),
        ([np.nan], False),
        ([], False),
    ],
)
def test_objectives_over_a_factor_of_30_are_wide(values: list[float], wide: bool) -> None:
    assert is_log(values) is wide


def _texts(figure: Figure) -> list[Text]:
    """Every text that is drawn: of ticks only those within the axis' limits."""
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        texts += [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in texts if text.get_text() and text.get_visible()]


def _assert_readable(figure: Figure) -> None:
    """No two texts overlap, none leaves the figure, none is below 6 points."""
    with matplotlib.rc_context(STYLE):
        figure.draw_without_rendering()
        boxes = [(text.get_text(), text.get_window_extent()) for text in _texts(figure)]
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in boxes:
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        up = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across < 1 or up < 1, f"{one!r} and {other!r} overlap by {across:.0f} x {up:.0f} px"
    assert min(float(text.get_fontsize()) for text in _texts(figure)) >= 6


@pytest.mark.long
@pytest.mark.parametrize("objectives", [2, 3, 5])
def test_labels_do_not_overlap(by_chance: Callable[..., Designs], objectives: int) -> None:
    designs, known, knobs = by_chance(200, objectives)
    figures = [pairs(designs, known), radar(designs, known, knobs), main_effects(designs, known, knobs)]
    if objectives == 2:
        figures += [main_effects(designs, known, knobs[:2]), main_effects(designs, known, ["optimizer.lr"])]
    for figure in figures:
        _assert_readable(figure)


@pytest.mark.long
def test_long_names_do_not_overlap(by_chance: Callable[..., Designs]) -> None:
    designs, known, knobs = by_chance(40)
    designs["name"] = [
        f"$cost$ {name} and then as much again and a_word_of_its_own" for name in designs["name"]
    ]
    designs["model.pool"] = "$a^b$ value that is a good deal too long " + designs["model.pool"]
    long = "latency_ms/cortexA76cpu_tflite21_and_more"
    designs[long], designs[f"spread.{long}"] = designs["latency_ms"] * 1.1, np.nan
    known = {"accuracy": known["accuracy"], "onnx_mb": known["onnx_mb"], long: METRICS["latency_ms"]}
    for figure in (
        pairs(designs, known),
        radar(designs, known, knobs),
        main_effects(designs, known, knobs),
    ):
        _assert_readable(figure)


@pytest.mark.long
@pytest.mark.parametrize("case", ["one", "identical", "no spreads", "many"])
def test_draws(case: str, tmp_path: Path, by_chance: Callable[..., Designs]) -> None:
    designs, known, knobs = by_chance(2000 if case == "many" else 20, 3)
    if case in ("one", "identical"):
        designs = pd.concat([designs[designs["front"]].head(1)] * (1 if case == "one" else 6))
    if case == "no spreads":
        designs[[f"spread.{name}" for name in known]] = np.nan
    figures = {"pairs": pairs(designs, known)}
    if case != "no spreads":  # the others do not show them
        figures |= {"radar": radar(designs, known, knobs), "effects": main_effects(designs, known, knobs)}
    for stem, figure in figures.items():
        if case in ("one", "identical") and stem == "effects":
            assert figure is None  # no two designs differ
            continue
        assert figure is not None
        if case != "many":
            _assert_readable(figure)
        for path in save(figure, tmp_path, stem):
            assert path.stat().st_size > 5000
    assert (tmp_path / "pairs.svg").stat().st_size < 2e6


def test_saved_files(tmp_path: Path, four: Designs) -> None:
    designs, objectives, _ = four
    folder = tmp_path / "not there yet"
    paths = save(pairs(designs, objectives), folder, "pairs")
    assert paths == [folder / "pairs.png", folder / "pairs.svg"]
    assert sorted(folder.iterdir()) == paths
    with Image.open(paths[0]) as image:
        assert image.size == (1000, 850)  # 5.0 x 4.25 inches at 200 dpi
    figure = pairs(designs, objectives)
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in save(figure, folder, "pairs")] == before
    assert not figure.axes


def test_a_file_is_whole_or_not_there(tmp_path: Path, four: Designs, monkeypatch: pytest.MonkeyPatch) -> None:
    designs, objectives, _ = four
    save(pairs(designs, objectives), tmp_path, "pairs")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(self: Figure, file: BinaryIO, **options: object) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(pairs(designs, objectives), tmp_path, "pairs")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_importing_loads_no_drawing_library() -> None:
    heavy = {"matplotlib", "plotly", "pandas"}
    code = f"import sys, dxc.report.figures, dxc.report.page; print({heavy} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert printed.stdout.strip() == "set()"
