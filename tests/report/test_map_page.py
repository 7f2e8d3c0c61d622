"""The page and the table of an evaluated map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dxc.evaluation.calibration import reliability
from dxc.report.map_page import print_map, score_in_text, write_evaluation

NAN = float("nan")
TABLE = pd.DataFrame(
    {
        "within_m": [5.0, 15.0], "hits": [1, 3],
        "recall": [0.25, 0.75], "recall_low": [NAN, 0.5], "recall_high": [NAN, 0.9],
        "precision": [NAN, 0.6], "precision_low": NAN, "precision_high": NAN,
        "false_alarms_per_km2": [4.0, 2.0], "false_alarms_per_km2_low": NAN, "false_alarms_per_km2_high": NAN,
        "false_alarms_per_road_km": NAN, "false_alarms_per_road_km_low": NAN, "false_alarms_per_road_km_high": NAN,
    }
)  # fmt: skip


def test_figures_have_their_intervals_and_what_is_unknown_is_missing() -> None:
    text = score_in_text(TABLE)
    assert list(text) == ["within (m)", "found", "map recall", "map precision", "false alarms (1/km2)"]
    assert text["map recall"].tolist() == ["0.25", "0.75 (0.5 to 0.9)"]
    assert text["map precision"].tolist() == ["-", "0.6"]
    assert text["found"].tolist() == ["1", "3"]


def test_a_name_is_text_on_the_page_and_in_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = write_evaluation(
        tmp_path / "out", title="<b>NE</b>", answers=[("found", "1 <of> 4")], said=[("network", "run <i>")],
        table=TABLE, curve=pd.DataFrame({"threshold": [0.9], "recall": [0.5], "precision": [1.0]}), threshold=0.5,
        truth=4, reliability=reliability([0.9], [1]), elevation=np.full((2, 2), np.nan), extent=(0, 100, 0, 100),
        places=pd.DataFrame({"x": [50], "y": [50], "kind": ["hit"]}),
    )  # fmt: skip
    html = page.read_text()
    assert (
        "&lt;b&gt;NE" in html and "1 &lt;of&gt; 4" in html and "run &lt;i&gt;" in html and "<b>NE" not in html
    )
    assert html.count("data:image/png;base64,") == 3 and "Synthetic watersheds are simpler" in html

    class Result:
        evaluation = page

        def said(self) -> list[tuple[str, str]]:
            return [("map", "3 crossings [bold]")]

        def answers(self) -> list[tuple[str, str]]:
            return [("found", "1 of 4")]

        def table(self) -> pd.DataFrame:
            return TABLE

    print_map(Result())
    said = capsys.readouterr().out
    assert "map: 3 crossings [bold]" in said and "found: 1 of 4" in said and "0.75 (0.5 to 0.9)" in said
    assert "report: " in said and "index.html" in said
