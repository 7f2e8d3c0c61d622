"""Tables of an analysis as data frames, and their files: Markdown, LaTeX, CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dxc.files import write_atomically
from dxc.metrics import METRICS, Metric, is_declared, label_of, metric_of, why_invalid
from dxc.report.figures import OPERATORS
from dxc.text import NUMBER, for_csv, for_html, for_latex, for_markdown, visible

if TYPE_CHECKING:
    import pandas as pd


def number(name: str, value: float, spread: float = float("nan")) -> str:
    """A metric's value as text, with ± its spread if there is one; '-' where the value is missing."""
    if value != value:
        return "-"
    form = metric_of(name).table_format if is_declared(name) else ".4g"
    return format(value, form) + (f" ± {spread:{form}}" if spread == spread else "")


def measured(name: str, rows: pd.DataFrame, spreads: Iterable[float] | None = None) -> list[str]:
    """The cells of a metric: 'invalid' where it was measured and does not count, '-' where it is missing.

    Args:
        name: of the metric.
        rows: one row a design, with the metric, and with the tags of Metric.verdicts where they are known.
        spreads: of its values; None: none is known.
    """
    tags = [tag for tag in (METRICS[name].verdicts if name in METRICS else ()) if tag in rows]
    refused = [any(map(why_invalid, said)) for said in rows[tags].itertuples(index=False)]
    known = [float("nan")] * len(rows) if spreads is None else spreads
    return [
        "invalid" if invalid else number(name, value, spread)
        for invalid, value, spread in zip(refused, rows[name], known, strict=True)
    ]


def ranges(designs: pd.DataFrame, objectives: Mapping[str, Metric]) -> pd.DataFrame:
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
    objectives: Mapping[str, Metric],
    knobs: Sequence[str],
    *,
    more: Sequence[str] = (),
) -> pd.DataFrame:
    """Designs with their objectives ± spread and knobs, best first in the first objective (published tables 4 and 5).

    Args:
        designs: one row per design.
        objectives: objectives to show, with their spread.
        knobs: knobs to show.
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


def front_profile(summary: pd.DataFrame) -> pd.DataFrame:
    """Profiled networks, one row per batch size: time, memory, shares of operator time (see
    dxc.analysis.front_profile)."""
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


def write(table: pd.DataFrame, folder: Path, stem: str, *, note: str = "") -> list[Path]:
    """STEM.md, STEM.tex (booktabs) and STEM.csv. note: a line under the table, a comment over it in LaTeX."""
    content = {"md": markdown(table, note), "tex": latex(table, note), "csv": comma_separated(table)}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, text in content.items():
        paths.append(folder / f"{stem}.{ending}")
        write_atomically(paths[-1], text)
    return paths


def markdown(table: pd.DataFrame, note: str = "") -> str:
    """A table of GitHub's Markdown."""
    from tabulate import tabulate

    heading, *rows = _cells(table, for_markdown)
    text = tabulate(rows, headers=heading, tablefmt="github", disable_numparse=True)
    return f"{text}\n" + f"\n{for_markdown(note)}\n" * bool(note)


def latex(table: pd.DataFrame, note: str = "") -> str:
    """A tabular with the rules of booktabs. tabulate's would not do: a row that begins with '[' breaks it."""
    heading, *rows = (" & ".join(cells) + r" \\" for cells in _cells(table, for_latex))
    lines = [rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}", r"\toprule", heading, r"\midrule", *rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join([f"% {visible(note)}"] * bool(note) + lines) + "\n"


def comma_separated(table: pd.DataFrame) -> str:
    """A CSV file in which numbers stay as they are and no text is a formula of a spreadsheet."""
    from pandas.api.types import is_numeric_dtype

    safe = table.copy()
    for place, kind in enumerate(table.dtypes):
        if not is_numeric_dtype(kind):
            safe.isetitem(place, table.iloc[:, place].astype(object).map(for_csv, na_action="ignore"))
    safe.columns = [for_csv(name) for name in table.columns]
    return safe.to_csv(index=False)


def html(table: pd.DataFrame, caption: str = "") -> str:
    """A table element. caption: a line above."""
    heading, *rows = _cells(table, for_html)
    head = "".join(f"<th>{cell}</th>" for cell in heading)
    body = "\n".join(f"<tr>{''.join(map(_td, row))}</tr>" for row in rows)
    above = f"<caption>{for_html(caption)}</caption>\n" if caption else ""
    return f"<table>\n{above}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _td(cell: str) -> str:
    """A number stays on one line."""
    return f'<td class="number">{cell}</td>' if NUMBER.fullmatch(cell) else f"<td>{cell}</td>"


def _cells(table: pd.DataFrame, safe: Callable[[object], str]) -> list[list[str]]:
    """Heading and rows."""
    return [
        [safe(cell) for cell in row] for row in ([*table.columns], *table.itertuples(index=False, name=None))
    ]
