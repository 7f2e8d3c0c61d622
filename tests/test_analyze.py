"""analyze.py end to end: the published table, a condition that does not parse."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

from dxc.config.compose import PROJECT_ROOT


def _analyze(*overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "analyze.py", *overrides],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_published_table(tmp_path: Path) -> None:
    """At the printed precision rows 1 and 4 of table 4 are the front; row 1 dominates 2 and 3, row 4 dominates 5."""
    done = _analyze("source=published", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "5 designs of published_resnet18, 2 on the front" in done.stdout
    printed = [line for line in done.stdout.splitlines() if re.match(r"(\d  )?row \d: ", line)]
    assert len(printed) == 5 + 6  # table 4 whole, and table 5
    assert [
        line for line in printed if "no: below row 1" in line and "95.45" in line.replace("0.9545", "95.45")
    ]
    folder = tmp_path / "published_resnet18"
    front = pd.read_csv(folder / "front.csv")
    assert list(front["design"]) == [
        "row 1: resnet18 k3 s2 p1 w32, 7ch b16",
        "row 4: resnet18 k3 s2 p1 w32, 5ch b8",
    ]
    assert list(front["predicted latency (ms)"]) == ["8.19 ± 4.59", "8.13 ± 4.53"]
    dominated = pd.read_csv(folder / "dominated.csv").set_index("design")["dominated by"]
    assert {name[:5]: by[:5] for name, by in dominated.items()} == {
        "row 2": "row 1",
        "row 3": "row 1",
        "row 5": "row 4",
    }
    notes = [line for line in done.stdout.splitlines() if " dominates " in line]
    assert [sorted(re.findall(r"row \d", line)) for line in notes] == [
        ["row 1", "row 2", "row 3"],
        ["row 4", "row 5"],
    ]
    assert "row 1" in (folder / "answer.txt").read_text() and "Answer" in (folder / "index.html").read_text()
    caption = (
        "published: doi 10.1145/3624062.3624258, table 4. trained: accuracy on chips of the published study (doi "
        "10.1145/3624062.3624258). predicted: latency for cortexA76cpu_tflite21"
    )
    assert f'<p class="caption">{caption}' in (folder / "index.html").read_text()
    assert len(pd.read_csv(folder / "baseline.csv")) == 6
    for name in ("pairs.png", "radar.svg", "index.html", "front.tex", "front.md"):
        assert (folder / name).stat().st_size > 100


def test_the_published_detectors(tmp_path: Path) -> None:
    """#2 is better and faster than the original and #1; #3 is the best and the slowest."""
    done = _analyze("source=published", "study=sppnet", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "4 designs of published_sppnet, 2 on the front" in done.stdout
    folder = tmp_path / "published_sppnet"
    front = pd.read_csv(folder / "front.csv")
    assert list(front["design"]) == ["#3: sppnet k3 l5 f2048", "#2: sppnet k3 l5 f4096"]
    assert list(front["average precision (fraction)"]) == [0.974, 0.967]
    assert list(front["measured latency (ms)"]) == [0.562, 0.295]
    assert list(front["measured latency IOS (ms)"]) == [0.427, 0.236]
    dominated = pd.read_csv(folder / "dominated.csv").set_index("design")["dominated by"]
    assert {name.split(":")[0]: by.split(":")[0] for name, by in dominated.items()} == {
        "original": "#2",
        "#1": "#2",
    }
    assert "on NVIDIA RTX A5500, batch 1" in done.stdout and "doi 10.1145/3624062.3624260" in done.stdout
    other = _analyze("source=published", "study=first")
    assert other.returncode == 2 and "of published studies there are resnet18, sppnet" in other.stderr


def test_a_condition_that_does_not_parse() -> None:
    done = _analyze("source=published", "where=accuracy > 0.9 adn latency_ms < 10")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "this does not read as a condition\n  accuracy > 0.9 adn latency_ms < 10\n" in done.stderr
