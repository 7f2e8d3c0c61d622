"""The front of tracked designs as one self-contained HTML file, which opens without a network connection."""

from __future__ import annotations

import base64
import hashlib
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

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
from dxc.report.templates import style, template
from dxc.text import counted, for_plotly, for_script, visible

if TYPE_CHECKING:
    import pandas as pd

TICKS = 12  # a numeric knob of more values is an axis of numbers in the parallel coordinates
AXIS_PX = 76  # between two parallel axes; more where a value's name is long
MARGINS_PX = 160  # beside the parallel axes
PAGE_PX = 1100  # the figures of a page 1200 pixels wide
CHARACTER_PX = 7
AXES = {"x": "horizontal", "y": "third axis", "z": "vertical"}


def page(
    designs: pd.DataFrame,
    objectives: Mapping[str, Metric],
    knobs: Sequence[str],
    *,
    title: str,
    answer: Sequence[tuple[str, str]] = (),
    sections: Sequence[tuple[str, str]] = (),
    note: str = "",
) -> str:
    """The page: the answer, a scatter plot of the objectives, the front, parallel coordinates, then the sections.

    Args:
        designs: as for dxc.report.figures, with `run_id`, `n` and `p_front` (0 to 1, NaN where unknown) as well.
        objectives: two objectives or more.
        knobs: columns of the knobs to show.
        title: title of the page.
        answer: labels and texts; '' where a text continues the one before, in a line of its own.
        sections: headings and their HTML, which is trusted. Its images are data: URLs; scripts and other files do not
            load.
            All other text is escaped.
        note: where the figures come from, such as the machines; the caption of each figure and table.

    Raises:
        ValueError: fewer than two objectives.

    """
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

    if len(objectives) < 2:
        raise ValueError("a front needs two objectives or more")
    folder = Path(__file__).parent
    scripts = [get_plotlyjs(), (folder / "page.js").read_text()]
    data = _data(designs, objectives, knobs)
    axes = len(data["dimensions"])
    between = max(AXIS_PX, (PAGE_PX - MARGINS_PX) // axes)
    for dimension in data["dimensions"]:
        if "ticktext" in dimension:  # a value has the room up to the next axis
            dimension["ticktext"] = [
                _cut(text, between // CHARACTER_PX - 1) for text in dimension["ticktext"]
            ]
    chosen = _axes(objectives)
    return template("page.html.j2").render(
        title=title,
        policy=_policy(scripts),
        style=style(),
        summary=_summary(designs, objectives),
        note=note,
        answer=answer,
        directions=_directions(objectives),
        axes=[
            (axis, AXES[axis], chosen[place])
            for place, axis in ((0, "x"), (2, "z"), (1, "y"))
            if len(chosen) > 2
        ],
        options=[(name, title_of(name)) for name in objectives],
        width=AXIS_PX * axes + MARGINS_PX,
        headings=_headings(objectives),
        rows=_rows(designs, objectives),
        sections=[(heading, Markup(content)) for heading, content in sections],
        data=Markup(for_script(data)),
        scripts=[Markup(script) for script in scripts],
    )


def _policy(scripts: Sequence[str]) -> str:
    """The content security policy: the browser runs only these scripts and loads nothing.

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
    front, unstable = int(designs["front"].sum()), int((designs["front"] & designs["unstable"]).sum())
    if len(designs) == 1:
        return f"There is one design: the front of {', '.join(names)} and {last} is that one."
    text = (
        f"{front:,} of {counted(len(designs), 'design')} {'is' if front == 1 else 'are'} on the front of "
        f"{', '.join(names)} and {last}: no other is at least as good in all of them and better in one"
    )
    if not unstable:
        return f"{text}."
    return (
        f"{text}; {unstable} of them {'is' if unstable == 1 else 'are'} unstable, on the front in few of the "
        "bootstrap draws."
    )


def _directions(objectives: Mapping[str, Metric]) -> str:
    """'Higher is better: accuracy. Lower is better: latency, ONNX file.'"""
    sides = [
        (word, [title_of(name) for name, objective in objectives.items() if objective.maximise == more])
        for word, more in (("Higher", True), ("Lower", False))
    ]
    return " ".join(f"{word} is better: {', '.join(names)}." for word, names in sides if names)


def _axes(objectives: Mapping[str, Metric]) -> list[str]:
    """The objectives first shown on the axes x, y and z: the first one is vertical. y is '': the plot is flat.

    Two objectives have two axes.
    """
    first, second, *others = objectives
    return [second, *([""] if others else []), first]


def _data(designs: pd.DataFrame, objectives: Mapping[str, Metric], knobs: Sequence[str]) -> dict[str, Any]:
    """The data that page.js draws. Rows are numbered in the order of designs; an unknown value is null."""
    front, unstable = designs["front"].to_numpy(dtype=bool), designs["unstable"].to_numpy(dtype=bool)
    groups = [
        (
            "other designs",
            ~front,
            {"symbol": "circle", "size": 4 if len(designs) <= 1000 else 2, "color": GREY, "opacity": 0.6},
        ),
        ("front", front & ~unstable, {"symbol": "diamond", "size": 7, "color": VERMILLION}),
        ("front, unstable", front & unstable, {"symbol": "diamond-open", "size": 7, "color": VERMILLION}),
    ]
    return {
        "axes": [visible(name) for name in _axes(objectives)],  # as the selects have them
        "objectives": [
            {
                "name": visible(name),
                "label": for_plotly(label_of(name, objective)),
                "log": is_log(designs[name]),
                "limits": _limits(designs, name, objective),
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


def _limits(designs: pd.DataFrame, name: str, objective: Metric) -> list[float | None]:
    """Where an axis of the scatter plot must end, because values beyond cannot be; null where plotly may choose.

    Plotly's own range of one value, or of a wide error bar, would go beyond.
    """
    values = designs[name].to_numpy(dtype=float)
    spread = np.nan_to_num(designs[f"spread.{name}"].to_numpy(dtype=float))
    low, high = objective.bounds
    if not np.isfinite(values).any():
        return [None, None]
    ends = np.nanmin(values - spread), np.nanmax(values + spread)
    room = 0.1 * (ends[1] - ends[0]) or 1  # plotly adds less than a tenth, and 1 to a single value
    mark = 0.02 * (min(ends[1] + room, high) - max(ends[0] - room, low))  # half of a marker, drawn whole
    return [
        float(low - mark) if ends[0] - room < low else None,
        float(high + mark) if ends[1] + room > high else None,
    ]


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]


def _hover(designs: pd.DataFrame, objectives: Mapping[str, Metric], knobs: Sequence[str]) -> list[str]:
    """Texts of the hover boxes. Plotly reads <br> and other tags in them, so all names are escaped."""
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
            f"mean of {counted(design['n'], 'run')}",
            f"run {design['run_id']}",
        ]
        first, *rest = (for_plotly(line) for line in lines)
        texts.append("<br>".join([f"<b>{first}</b>", *rest]))
    return texts


def _value(design: Mapping[Any, Any], name: str, objective: Metric) -> str:
    """'0.9300 ± 0.0110'."""
    value, spread = (float(design.get(key, np.nan)) for key in (name, f"spread.{name}"))
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
    """The parallel axes: knobs of words or few values with a tick per value, other knobs as numbers, then
    objectives."""
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
                "ticktext": [visible(text) for text in labels],  # plotly takes these as plain text
                "range": [-0.2, len(labels) - 0.8],
            }
        )
    for name, objective in objectives.items():
        label, values = _label(label_of(name, objective)), designs[name].to_numpy(dtype=float)
        axes.append(_range(label, values, objective.bounds))
    return axes


def _label(text: str) -> str:
    """A label for plotly: escaped, because plotly reads markup in it, and cut to fit the picture."""
    return for_plotly(_cut(visible(text), 24))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _range(
    label: str, values: np.ndarray, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> dict[str, Any]:
    """An axis of numbers over all designs. Plotly has no logarithmic axis here, so logarithms get ticks of their
    own.

    Args:
        label: of the axis.
        values: one per design.
        bounds: the least and the greatest value that can be.
    """
    log = is_log(values)
    shown = np.log10(values) if log else values
    known = shown[np.isfinite(shown)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    if low == high:
        low, high = np.clip((low - 0.5, high + 0.5), *bounds)
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


def _headings(objectives: Mapping[str, Metric]) -> list[dict[str, str]]:
    """The columns of the table: `kind` text or number, `text`, and `sort`, the order that the table comes in."""
    first, best = next(iter(objectives.items()))
    order = "descending" if best.maximise else "ascending"
    return [
        {"kind": "text", "text": "design", "sort": ""},
        *(
            {"kind": "number", "text": label_of(name, objective), "sort": order if name == first else ""}
            for name, objective in objectives.items()
        ),
        {"kind": "number", "text": "P(on the front)", "sort": ""},
        {"kind": "number", "text": "runs", "sort": ""},
        {"kind": "text", "text": "run", "sort": ""},
    ]


def _rows(designs: pd.DataFrame, objectives: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """The front, best first objective first: `name`, `numbers` as (text, what it is sorted by), and `run`.

    An unknown number sorts last.
    """
    first, best = next(iter(objectives.items()))
    front = designs[designs["front"]].sort_values(first, ascending=not best.maximise, kind="stable")
    rows = []
    for design in front.to_dict("records"):
        p_front = _share(design["p_front"]) + (" (unstable)" if design["unstable"] else "")
        numbers = [
            *((_value(design, name, each), _sort_key(design[name])) for name, each in objectives.items()),
            (p_front, _sort_key(design["p_front"])),
            (str(design["n"]), _sort_key(design["n"])),
        ]
        rows.append({"name": design["name"], "numbers": numbers, "run": design["run_id"]})
    return rows


def _sort_key(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else ""
