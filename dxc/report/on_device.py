"""The table and figures of designs on a device. They take the frame of dxc.analysis.deployed.deployed()."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dxc.hardware.measure.energy.protocol import advice
from dxc.metrics import (
    ENERGY_METER,
    ENERGY_VERDICT,
    INVALID_RUNS,
    METRICS,
    NOT_METERED,
    VERDICTS,
    label_of,
    why_invalid,
)
from dxc.pareto import non_dominated
from dxc.report import figures, tables
from dxc.report.templates import picture
from dxc.report.terminal import new_console, print_frame, print_text
from dxc.text import counted, for_html

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

STEM = "deployment"
AGAINST = ("energy_mj", "measured_latency_ms")
"""What accuracy is drawn against, where designs have it."""
WORDS = ("design", "device", "runtime", "meter")


def deployment_in_text(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as text: design, accuracy, latency, energy, power, memory, figure of merit, runtime.

    A figure that was measured and does not count is "invalid". Device and meter are columns where they differ; the
    runtime, which figures depend on as much, always is.
    """
    import pandas as pd

    columns: dict[str, list[str]] = {"design": list(frame["name"])}
    for name in (column for column in frame if column in METRICS):
        columns[label_of(name, METRICS[name])] = tables.measured(name, frame)
    columns["runtime"] = list(frame["runtime"])
    for name in ("device", "meter"):
        if len(set(frame[name])) > 1:
            columns[name] = [text or "-" for text in frame[name]]
    if (frame["n"] > 1).any():
        columns["runs"] = [str(n) for n in frame["n"]]
    return pd.DataFrame(columns)


def missing(frame: pd.DataFrame) -> list[str]:
    """Which figures are missing, of which designs, and why: nothing was metered, or what was measured is invalid.

    Args:
        frame: see the head of this module.
    """
    notes = []
    for tag, what in VERDICTS.items():
        metric = next(name for name, each in METRICS.items() if each.verdicts == (tag,))
        without = frame[frame[metric].isna()]
        reasons = without[tag].map(why_invalid)
        refused = without[reasons != ""]
        unmetered = without[without[tag] == NOT_METERED]
        unknown = without.drop(index=refused.index.union(unmetered.index))
        if len(unmetered):
            notes.append(
                f"{what} is missing for {_share(unmetered, frame)}, because nothing was metered. "
                "Deploy with a meter: python deploy.py energy=..."
            )
        if len(refused):
            notes.append(f"{what} was measured and is invalid for {_share(refused, frame)}")
            notes += [
                f"{what} of {row['name']} is invalid{_by_meter(row, tag)}: {reasons[place]:.1000}"
                for place, row in refused.iterrows()
            ]
            if tag == ENERGY_VERDICT:
                notes.append(f"for a valid energy: {advice(reasons[refused.index])}")
        if len(unknown):
            notes.append(f"{what} is missing for {_share(unknown, frame)}, and their runs do not say why")
        column = INVALID_RUNS.format(tag)
        for _, row in frame[frame[metric].notna() & (frame[column] > 0)].iterrows():
            notes.append(
                f"{what} of {row[column]} of {row['n']} runs of {row['name']} is invalid, and not in its mean"
            )
    unjudged = frame[frame["energy_mj"].notna() & frame["device_accuracy"].isna()]
    if len(unjudged):
        notes.append(
            f"the figure of merit is missing for {_share(unjudged, frame)}, because their accuracy on the device is. "
            "Deploy them with labelled images (images=test)"
        )
    return notes


def _share(some: pd.DataFrame, frame: pd.DataFrame) -> str:
    """'2 of 3 designs (a, b)'."""
    return f"{len(some)} of {counted(len(frame), 'design')} ({', '.join(some['name'])})"


def _by_meter(row: pd.Series, tag: str) -> str:
    return f" ({row['meter']})" if tag == ENERGY_VERDICT and row["meter"] else ""


def comparable(frame: pd.DataFrame, name: str) -> bool:
    """Whether the values of a metric are of one device and runtime, threads included, and of one meter where it is
    metered: else none of them is better than another.

    Args:
        frame: see the head of this module.
        name: of the metric.
    """
    metered = ENERGY_METER in METRICS[name].comparable_by
    places = frame.loc[frame[name].notna(), ["device", "runtime", *(["meter"] if metered else [])]]
    return len(places.drop_duplicates()) <= 1


def deployment_figure(frame: pd.DataFrame, against: str) -> Figure | None:
    """Accuracy on the device against a cost, with the front of these two; None where no design has both, and where they
    are of several devices or meters, which have no front.

    Args:
        frame: see the head of this module.
        against: a column with a cost.
    """
    known = frame[frame[against].notna() & frame["device_accuracy"].notna()]
    if known.empty or not comparable(known, against):
        return None
    objectives = {name: METRICS[name] for name in ("device_accuracy", against)}
    values = known[list(objectives)].to_numpy(dtype=float)
    front = non_dominated(values, maximise=[each.maximise for each in objectives.values()])
    spreads = {f"spread.{name}": float("nan") for name in objectives}
    return figures.pairs(known.assign(front=front, unstable=False, **spreads), objectives, note=_of(frame))


def _of(frame: pd.DataFrame) -> str:
    """What all of these figures are of, where they are of one thing."""
    same = [
        frame[column].iloc[0] for column in ("device", "runtime", "meter") if len(set(frame[column])) == 1
    ]
    return "; ".join(text for text in same if text not in ("", "-"))


def write_deployment(frame: pd.DataFrame, folder: Path) -> None:
    """Write deployment.md, .tex and .csv, and a figure for each cost (PNG, SVG); the previous ones are removed.

    Args:
        frame: see the head of this module.
        folder: is made if it does not exist.

    Raises:
        OSError: a file cannot be written.
    """
    for stem in (STEM, *(f"{STEM}_{name}" for name in AGAINST)):
        for old in folder.glob(f"{stem}.*"):
            old.unlink()
    note = ". ".join(filter(None, (_of(frame), *missing(frame))))
    tables.write(deployment_in_text(frame), folder, STEM, note=note)
    for name in AGAINST:
        if (figure := deployment_figure(frame, name)) is not None:
            figures.save(figure, folder, f"{STEM}_{name}")


def page_sections(frame: pd.DataFrame, power: Figure | None = None) -> list[tuple[str, str]]:
    """Sections of the page (dxc.report.page): the table, accuracy against each cost, and power over time.

    Args:
        frame: see the head of this module.
        power: of dxc.report.power, of the chosen design.
    """
    parts = [tables.html(deployment_in_text(frame), _of(frame))]
    parts += [f"<p>{for_html(note)}</p>" for note in missing(frame)]
    for name in AGAINST:
        if (figure := deployment_figure(frame, name)) is not None:
            parts.append(_image(figure, f"accuracy on the device against {label_of(name, METRICS[name])}"))
    sections = [("On the device", "\n".join(parts))]
    if power is not None:
        sections.append(
            ("Power of the chosen design", _image(power, "power over time, with the windows marked"))
        )
    return sections


def _image(figure: Figure, text: str) -> str:
    """The figure as an element of a page: a PNG within it."""
    import matplotlib

    drawn = io.BytesIO()
    with matplotlib.rc_context(figures.STYLE):
        figure.savefig(drawn, format="png", dpi=150)
    figure.clear()
    return f"<p>{picture(drawn.getvalue(), text)}</p>"


def print_deployment(frame: pd.DataFrame, folder: Path, *, title: str, lines: Sequence[str]) -> None:
    """Print the table, some lines, and where the files are.

    Args:
        frame: see the head of this module.
        folder: of the files.
        title: the studies.
        lines: further ones.
    """
    console = new_console()
    print_text(console, f"{counted(len(frame), 'design')} of {title} on a device")
    print_frame(console, deployment_in_text(frame), title="designs on their device", words=WORDS)
    if said := _of(frame):
        print_text(console, f"measured:  on {said}")
    for line in lines:
        print_text(console, line)
    print_text(console, f"report:    {os.path.relpath(folder)}")
