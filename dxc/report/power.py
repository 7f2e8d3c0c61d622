"""Power over time, as a meter saw it, with what the device did."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from dxc.hardware.measure.energy.metering import Metering
from dxc.hardware.measure.energy.protocol import EDGE_SECONDS
from dxc.report.figures import BLUE, GREY, STYLE, TWO_COLUMNS_IN, VERMILLION
from dxc.text import for_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def power(metering: Metering, *, title: str = "") -> Figure:
    """Draw the samples over time. Load is shaded, idle time is grey, and each window has its mean as a line.

    An invalid figure says so, with its reason.

    Args:
        metering: samples, windows and verdict.
        title: of the network.
    """
    import matplotlib
    from matplotlib.figure import Figure

    energy = metering.energy
    begin = min((each.begin_s for each in metering.windows), default=0.0)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(TWO_COLUMNS_IN, 2.8), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(
            [each.time_s - begin for each in metering.samples], [each.watt for each in metering.samples],
            color="black", linewidth=0.7, marker="." if len(metering.samples) < 500 else "", markersize=2,
        )  # fmt: skip
        named: set[str] = set()
        for each in metering.windows:
            colour = VERMILLION if each.kind == "load" else GREY
            axes.axvspan(
                each.begin_s - begin, each.end_s - begin, color=colour, alpha=0.15, linewidth=0,
                label=None if each.kind in named else each.kind,
            )  # fmt: skip
            named.add(each.kind)
            inside = [
                s.watt
                for s in metering.samples
                if each.begin_s + EDGE_SECONDS <= s.time_s <= each.end_s - EDGE_SECONDS
            ]
            if inside:
                mean = sum(inside) / len(inside)
                axes.hlines(mean, each.begin_s - begin, each.end_s - begin, color=BLUE, linewidth=1.2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("time (s)")
        axes.set_ylabel("power (W)")
        if named:
            axes.legend(loc="upper right", ncols=2)
        heading = ", ".join(filter(None, (title, metering.meter)))
        axes.set_title(
            "\n".join(textwrap.fill(for_figure(line), 110) for line in (heading, _said(metering))), loc="left"
        )
        if not energy.valid:
            axes.title.set_color(VERMILLION)
    return figure


def _said(metering: Metering) -> str:
    """The figures, or why there are none."""
    energy = metering.energy
    if not energy.valid:
        return f"invalid: {energy.reason}"
    parts = []
    for name, value, error in (
        ("gross", energy.energy_mj, energy.energy_error_mj),
        ("net", energy.net_energy_mj, energy.net_energy_error_mj),
    ):
        if value is not None:
            parts.append(f"{name} {value:.4g}" + (f" ± {error:.2g}" if error is not None else "") + " mJ")
    return f"{', '.join(parts)} an image; at most {energy.max_power_w or 0:.2f} W"
