"""Tables of an analysis as data frames, and their files: Markdown, LaTeX, CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dxc.files import write_atomically
from dxc.pareto import Objective
from dxc.report.figures import OPERATORS, label_of

if TYPE_CHECKING:
    import pandas as pd

DIGITS = {
    "accuracy": 4,
    "latency_ms": 2,
    "efficiency_ms": 3,
    "optimum_batch": 0,
    "onnx_mb": 2,
    "params": 0,
    "macs": 0,
}
"""After the point; other metrics have four significant digits."""


def number(name: str, value: float, spread: float = float("nan")) -> str:
    """A value of a metric as text, with ± its spread where there is one; '-' where it is missing."""
    if value != value:
        return "-"
    digits = DIGITS.get(name.split("/")[0])
    text = "{:.4g}" if digits is None else f"{{:,.{digits}f}}"
    return text.format(value) + (f" ± {text.format(spread)}" if spread == spread else "")


def ranges(designs: pd.DataFrame, objectives: Mapping[str, Objective]) -> pd.DataFrame:
    """Least and most of each objective (published table 3)."""
    import pandas as pd

    rows = [
        {
            "objective": label_of(name, objectives[name]),
            "better": "higher" if each.maximise else "lower",
            "min": number(name, designs[name].min()),
            "max": number(name, designs[name].max()),
            "designs": len(designs),
        }
        for name, each in objectives.items()
    ]
    return pd.DataFrame(rows)


def listing(
    designs: pd.DataFrame,
    objectives: Mapping[str, Objective],
    knobs: Sequence[str],
    *,
    more: Sequence[str] = (),
) -> pd.DataFrame:
    """Designs with their objectives ± spread and knobs, best first in the first objective (published tables 4 and 5).

    more: further columns, printed as they are.
    """
    import pandas as pd

    first = next(iter(objectives))
    ordered = designs.sort_values(first, ascending=not objectives[first].maximise, kind="stable")
    columns: dict[str, list[str]] = {"design": list(ordered["name"])}
    for name in objectives:
        spreads = ordered.get(f"spread.{name}", pd.Series(float("nan"), ordered.index))
        columns[label_of(name, objectives[name])] = [
            number(name, value, spread) for value, spread in zip(ordered[name], spreads, strict=True)
        ]
    for name in more:
        columns[name] = [_text(value) for value in ordered[name]]
    for name in knobs:
        columns[name] = [_text(value) for value in ordered[name]]
    return pd.DataFrame(columns)


def inside(summary: pd.DataFrame) -> pd.DataFrame:
    """Profiled networks, a row a batch: time, memory, and where the time goes (see dxc.analysis.inside)."""
    import pandas as pd

    columns: dict[str, list[str]] = {
        "design": list(summary["name"]),
        "batch": [str(batch) for batch in summary["batch"]],
        "execution (ms)": [number("", value) for value in summary["ms"]],
        "per image (ms)": [number("", value) for value in summary["ms_per_image"]],
        "copies and layout (ms)": [number("", value) for value in summary["memory_ms"]],
        "peak memory at batch 1 (MB)": [number("", value) for value in summary["peak_memory_mb"]],
    }
    for kind in OPERATORS:
        columns[f"{kind} (%)"] = [f"{100 * share:.1f}" for share in summary[kind]]
    return pd.DataFrame(columns | {"profiler": list(summary["source"])})


def _text(value: object) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.4g}"
    return str(value)


def write(table: pd.DataFrame, folder: Path, stem: str) -> list[Path]:
    """STEM.md, STEM.tex (booktabs) and STEM.csv."""
    from tabulate import tabulate

    content = {
        "md": tabulate(table, headers="keys", tablefmt="github", showindex=False, disable_numparse=True) + "\n",
        "tex": tabulate(table, headers="keys", tablefmt="latex_booktabs", showindex=False, disable_numparse=True)
        .replace("±", r"$\pm$") + "\n",
        "csv": table.to_csv(index=False),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, text in content.items():
        paths.append(folder / f"{stem}.{ending}")
        write_atomically(paths[-1], text)
    return paths
