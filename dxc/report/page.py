"""The front of tracked designs as one HTML file: it opens without a network and holds all it shows."""

from __future__ import annotations

import base64
import hashlib
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dxc.metrics import Metric, label_of, title_of
from dxc.report.figures import (
    GREY,
    MISSING,
    VERMILLION,
    is_log,
    levels,
    short_names,
    tick_number,
)
from dxc.text import for_html, for_plotly, for_script, visible

if TYPE_CHECKING:
    import pandas as pd

TICKS = 12  # a numeric knob of more values is an axis of numbers in the parallel coordinates
AXIS_PX = 76  # between two parallel axes; more where a value's name is long


def page(
    designs: pd.DataFrame,
    objectives: Mapping[str, Metric],
    knobs: Sequence[str],
    *,
    title: str,
    sections: Sequence[tuple[str, str]] = (),
    note: str = "",
) -> str:
    """The page: a scatter plot of the objectives, parallel coordinates, a table of the front, then the sections.

    designs: as for dxc.report.figures, with `run_id`, `n` and `p_front` (0 to 1, NaN where unknown) as well.
    sections: headings and their HTML, which is trusted; a script or a file from elsewhere would not load, images are
    data: URLs. All other text is escaped. note: which machines the figures belong to. Raises ValueError for fewer than
    two objectives.
    """
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

    if len(objectives) < 2:
        raise ValueError("a front needs two objectives or more")
    folder = Path(__file__).parent
    scripts = [get_plotlyjs(), (folder / "page.js").read_text()]
    data = _data(designs, objectives, knobs)
    longest = max(len(text) for axis in data["dimensions"] for text in axis.get("ticktext", [""]))
    width = max(AXIS_PX, 7 * longest) * len(data["dimensions"]) + 160
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{for_html(title)}</title>",
        f"<style>{(folder / 'page.css').read_text()}</style>",
        "</head>",
        "<body>",
        f"<h1>{for_html(title)}</h1>",
        f"<p>{for_html(_summary(designs, objectives))}</p>",
        *([f"<p>{for_html(note)}</p>"] if note else []),
        "<noscript><p>The charts need JavaScript; the table of the front does not.</p></noscript>",
        "<section>",
        "<h2>Trade-offs</h2>",
        f"<p>{_directions(objectives)} Bars on the front are one standard deviation. Point at a design "
        "for its figures.</p>",
        _selects(objectives),
        '<div id="scatter" role="group" aria-label="Scatter plot of the designs"></div>',
        "</section>",
        "<section>",
        "<h2>Knobs and objectives</h2>",
        f"<p>Each line is a design, the darker the better in {for_html(title_of(next(iter(objectives))))}. Drag along "
        "an axis to keep the lines that pass there; drag a name to move its axis.</p>",
        '<label><input type="checkbox" id="front-only"> front only</label>',
        '<div class="scroll" tabindex="0" role="group" aria-label="Parallel coordinates of the designs">',
        f'<div id="parallel" style="min-width: {width}px"></div>',
        "</div>",
        "</section>",
        "<section>",
        "<h2>Front</h2>",
        _table(designs, objectives),
        "</section>",
        *(
            f'<section>\n<h2>{for_html(heading)}</h2>\n<div class="scroll">{html}</div>\n</section>'
            for heading, html in sections
        ),
        f'<script type="application/json" id="data">{for_script(data)}</script>',
        *(f"<script>{script}</script>" for script in scripts),
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _policy(scripts: Sequence[str]) -> str:
    """Lets the browser run these scripts and no other, and load nothing from anywhere.

    'unsafe-eval': plotly's WebGL layer compiles its draw commands.
    """
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed} 'unsafe-eval'; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _summary(designs: pd.DataFrame, objectives: Mapping[str, Metric]) -> str:
    *names, last = (title_of(name) for name in objectives)
    front, lucky = int(designs["front"].sum()), int((designs["front"] & designs["lucky"]).sum())
    text = (
        f"{front:,} of {len(designs):,} designs {'is' if front == 1 else 'are'} on the front of {', '.join(names)} and "
        f"{last}: no other is at least as good in all of them and better in one"
    )
    return (
        f"{text}; {lucky} of them {'is' if lucky == 1 else 'are'} perhaps there by luck."
        if lucky
        else f"{text}."
    )


def _directions(objectives: Mapping[str, Metric]) -> str:
    """'Higher is better: accuracy. Lower is better: latency, ONNX file.'"""
    sides = [
        (word, [title_of(name) for name, objective in objectives.items() if objective.maximise == more])
        for word, more in (("Higher", True), ("Lower", False))
    ]
    return for_html(" ".join(f"{word} is better: {', '.join(names)}." for word, names in sides if names))


def _axes(objectives: Mapping[str, Metric]) -> list[str]:
    """What the axes x, y and z begin with: three objectives, the first one upright; or two."""
    first, *others = objectives
    return [*others[:2], first]


def _selects(objectives: Mapping[str, Metric]) -> str:
    """A select for each axis. With two objectives there is nothing to choose."""
    axes = _axes(objectives)
    if len(axes) == 2:
        return ""
    boxes = []
    for axis, chosen in zip("xyz", axes, strict=True):
        options = [
            f'<option value="{for_html(name)}"{" selected" * (name == chosen)}>{for_html(title_of(name))}</option>'
            for name in objectives
        ]
        none = '<option value="">none (flat)</option>' if axis == "y" else ""
        boxes.append(f'<label>{axis} <select name="{axis}">{"".join(options)}{none}</select></label>')
    return f'<div id="axes">{"".join(boxes)}</div>'


def _data(designs: pd.DataFrame, objectives: Mapping[str, Metric], knobs: Sequence[str]) -> dict[str, Any]:
    """What page.js draws. Rows are numbered in the order of designs; an unknown value is null."""
    front, lucky = designs["front"].to_numpy(dtype=bool), designs["lucky"].to_numpy(dtype=bool)
    groups = [
        (
            "other designs",
            ~front,
            {"symbol": "circle", "size": 4 if len(designs) <= 1000 else 2, "color": GREY, "opacity": 0.6},
        ),
        ("front", front & ~lucky, {"symbol": "diamond", "size": 7, "color": VERMILLION}),
        ("front, perhaps by luck", front & lucky, {"symbol": "diamond-open", "size": 7, "color": VERMILLION}),
    ]
    return {
        "axes": [visible(name) for name in _axes(objectives)],  # as the selects have them
        "objectives": [
            {
                "name": visible(name),
                "label": for_plotly(label_of(name, objective)),
                "log": is_log(designs[name]),
                "maximise": objective.maximise,
                "values": _numbers(designs[name]),
                "spread": _numbers(designs[f"spread.{name}"]),
            }
            for name, objective in objectives.items()
        ],
        "groups": [
            {
                "title": title,
                "rows": np.flatnonzero(which).tolist(),
                "marker": marker,
                "bars": "front" in title,
            }
            for title, which, marker in groups
            if which.any()
        ],
        "front": np.flatnonzero(front).tolist(),
        "hover": _hover(designs, objectives, knobs),
        "dimensions": _dimensions(designs, objectives, knobs),
    }


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]


def _hover(designs: pd.DataFrame, objectives: Mapping[str, Metric], knobs: Sequence[str]) -> list[str]:
    """Plotly's text: <br> breaks a line, and what looks like a tag must be escaped."""
    names = short_names(knobs)
    settings = [levels(designs[knob]) for knob in knobs]
    texts = []
    for row, design in enumerate(designs.to_dict("records")):
        set_to = [
            f"{names[knob]} {labels[codes[row]]}"
            for knob, (codes, labels) in zip(knobs, settings, strict=True)
        ]
        lines = [
            *textwrap.wrap(visible(design["name"]), 60),
            *textwrap.wrap(", ".join(set_to), 60),
            *(
                f"{title_of(name)}: {_with_unit(_value(design, name, objective), objective)}"
                for name, objective in objectives.items()
            ),
            f"probability of being on the front: {_share(design['p_front'])}",
            f"mean of {design['n']} run{'' if design['n'] == 1 else 's'}",
            f"run {design['run_id']}",
        ]
        first, *rest = (for_plotly(line) for line in lines)
        texts.append("<br>".join([f"<b>{first}</b>", *rest]))
    return texts


def _value(design: Mapping[Any, Any], name: str, objective: Metric) -> str:
    """'0.9300 ± 0.0110'."""
    value, spread = (float(design[column]) for column in (name, f"spread.{name}"))
    text = format(value, objective.format) if math.isfinite(value) else MISSING
    if math.isfinite(spread) and format(spread, objective.format) != format(0, objective.format):
        text += f" ± {spread:{objective.format}}"
    return text


def _with_unit(text: str, objective: Metric) -> str:
    return text if objective.symbol in ("", "fraction") else f"{text} {objective.symbol}"


def _share(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else MISSING


def _dimensions(
    designs: pd.DataFrame, objectives: Mapping[str, Metric], knobs: Sequence[str]
) -> list[dict[str, Any]]:
    """The parallel axes: knobs of words or few values with a tick a value, others as numbers, then objectives."""
    from pandas.api.types import is_numeric_dtype

    names = short_names(knobs)
    # lines that share a value would hide each other: they lie side by side, in the order of the first objective
    place = designs[next(iter(objectives))].rank(method="first", na_option="top").to_numpy()
    aside = 0.3 * (place / (len(designs) + 1) - 0.5)
    axes = []
    for knob in knobs:
        codes, labels = levels(designs[knob])
        label = _label(names[knob])
        if len(labels) > TICKS and is_numeric_dtype(designs[knob]):
            axes.append(_range(label, designs[knob].to_numpy(dtype=float)))
            continue
        axes.append(
            {
                "label": label,
                "values": [round(value, 4) for value in (codes + aside).tolist()],
                "tickvals": list(range(len(labels))),
                "ticktext": [_cut(visible(text), 18) for text in labels],  # plotly takes these as plain text
                "range": [-0.2, len(labels) - 0.8],
            }
        )
    for name, objective in objectives.items():
        axes.append(_range(_label(label_of(name, objective)), designs[name].to_numpy(dtype=float)))
    return axes


def _label(text: str) -> str:
    """Plotly takes these as markup; longer ones would leave the picture."""
    return for_plotly(_cut(visible(text), 24))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _range(label: str, values: np.ndarray) -> dict[str, Any]:
    """An axis of numbers over all designs; plotly has no logarithmic one here, so logarithms get ticks of their own."""
    log = is_log(values)
    shown = np.log10(values) if log else values
    known = shown[np.isfinite(shown)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    axis: dict[str, Any] = {"label": label, "values": _numbers(shown), "range": [float(low), float(high)]}
    if log:
        steps = (1, 2, 5) if high - low < 3 else (1,)
        decades = range(math.floor(low), math.ceil(high) + 1)
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
        axis |= {
            "tickvals": [math.log10(tick) for tick in ticks],
            "ticktext": [tick_number(tick) for tick in ticks],
        }
    return axis


def _table(designs: pd.DataFrame, objectives: Mapping[str, Metric]) -> str:
    """The front, best first objective first. Cells carry what they are sorted by; an unknown number sorts last."""
    first, best = next(iter(objectives.items()))
    front = designs[designs["front"]].sort_values(first, ascending=not best.maximise, kind="stable")
    order = ' aria-sort="descending"' if best.maximise else ' aria-sort="ascending"'
    headings = [
        ("text", "design", ""),
        *(
            ("number", label_of(name, objective), order if name == first else "")
            for name, objective in objectives.items()
        ),
        ("number", "P(on the front)", ""),
        ("number", "runs", ""),
        ("text", "run", ""),
    ]
    head = "".join(
        f'<th scope="col" data-kind="{kind}"{sort}><button type="button">{for_html(text)}</button></th>'
        for kind, text, sort in headings
    )
    rows = []
    for design in front.to_dict("records"):
        p_front = _share(design["p_front"]) + (" (perhaps luck)" if design["lucky"] else "")
        cells = [
            *(_cell(_value(design, name, each), design[name]) for name, each in objectives.items()),
            _cell(p_front, design["p_front"]),
            _cell(str(design["n"]), design["n"]),
        ]
        name, run = for_html(design["name"]), for_html(design["run_id"])
        rows.append(
            f'<tr><td class="name" data-sort="{name}">{name}</td>{"".join(cells)}'
            f'<td data-sort="{run}"><code>{run}</code></td></tr>'
        )
    return "\n".join(
        [
            '<div class="scroll front" tabindex="0" role="group" aria-label="Table of the front">',
            "<table>",
            "<caption>Mean ± one standard deviation. Press a heading to sort by it.</caption>",
            f"<thead><tr>{head}</tr></thead>",
            "<tbody>",
            *rows,
            "</tbody>",
            "</table>",
            "</div>",
        ]
    )


def _cell(text: str, value: float) -> str:
    sort = repr(float(value)) if math.isfinite(value) else ""
    return f'<td class="number" data-sort="{sort}">{for_html(text)}</td>'
