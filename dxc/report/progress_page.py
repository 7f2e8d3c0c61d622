"""A page that shows how far a search is: reports/STUDY/index.html, where analyze.py writes the full report later."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dxc.files import write_atomically
from dxc.metrics import label_of, metric_of
from dxc.report.front_plot import Axis, FrontPlot
from dxc.report.templates import style, template

log = logging.getLogger(__name__)

PAGE = "index.html"
EVERY_S = 3.0  # between two writings
SHARE = 0.005  # of the time that passes, at most, is spent on writing
REFRESH_S = 10  # between two looks of a browser
RUNNING, COMPLETE, STOPPED = "running", "complete", "stopped"
WIDTH, HEIGHT = 640, 360  # of the plot in pixels, without labels
LEFT, BOTTOM, MARGIN = 80, 50, 16  # room for them
MISSING = "–"


@dataclass(frozen=True)
class Trained:
    """A finished trial. on_front: no other finished trial is as good in all objectives."""

    trial: str
    name: str
    metrics: Mapping[str, float]
    on_front: bool


class ProgressPage:
    """Writes the page, whole or not at all, and not too often: what comes in between is written a little later.

    A page that cannot be written costs a line in the log, never the search.

    Args:
        path: of the page; its folder is made.
        study: its name.
        objectives: of the front; the columns.
        score: the metric that is trained for.
    """

    def __init__(self, path: Path, study: str, objectives: Sequence[str], score: str) -> None:
        self.path = path
        self.notes: list[str] = []
        self.written = False
        self._study, self._objectives, self._score = study, list(objectives), score
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._next = 0.0

    def show(
        self,
        trials: Sequence[Trained],
        plot: FrontPlot | None,
        progress: str,
        at_work: Sequence[str],
        state: str,
    ) -> None:
        """Show this state of the search.

        Args:
            trials: that have finished.
            plot: of them.
            progress: in words.
            at_work: names of the trials that are trained now.
            state: RUNNING; COMPLETE or STOPPED where the search has ended: then the page is written at once, and
                browsers do not load it again.
        """
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            draw = partial(self.html, list(trials), plot, progress, list(at_work), state)
            wait_s = self._next - time.monotonic()
            if state != RUNNING or wait_s <= 0:
                self._write(draw)
                return
            self._timer = threading.Timer(wait_s, self._late, [draw])
            self._timer.daemon = True
            self._timer.start()

    def _late(self, draw: Callable[[], str]) -> None:
        with self._lock:
            if (
                self._timer is threading.current_thread()
            ):  # else it was overtaken while it waited for the lock
                self._timer = None
                self._write(draw)

    def _write(self, draw: Callable[[], str]) -> None:
        began = time.thread_time()  # where other processes keep the machine busy it is no larger
        html = draw()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, html, sync=False)  # the next one comes soon
            self.written = True
        except OSError as error:
            log.warning("the page of progress cannot be written: %s", error)
        self._next = time.monotonic() + max(EVERY_S, (time.thread_time() - began) / SHARE)

    def html(
        self,
        trials: Sequence[Trained],
        plot: FrontPlot | None,
        progress: str,
        at_work: Sequence[str],
        state: str,
    ) -> str:
        """The page; see show()."""
        return template("progress.html.j2").render(
            study=self._study,
            style=style(),
            refresh_s=REFRESH_S if state == RUNNING else 0,
            state=state,
            written=time.strftime("%Y-%m-%d %H:%M:%S"),
            progress=progress,
            at_work=at_work,
            notes=self.notes,
            plot=None if plot is None else _drawn(plot, trials),
            headings=[label_of(name, metric_of(name)) for name in self._objectives],
            rows=[
                (trial, [_cell(name, trial.metrics) for name in self._objectives])
                for trial in sorted(trials, key=self._order)
            ],
            front=sum(trial.on_front for trial in trials),
        )

    def _order(self, trial: Trained) -> tuple[bool, float]:
        """The front first, then the best score first."""
        score = trial.metrics.get(self._score, float("-inf"))
        return not trial.on_front, -score if metric_of(self._score).maximise else score


def _cell(name: str, metrics: Mapping[str, float]) -> str:
    return format(metrics[name], metric_of(name).table_format) if name in metrics else MISSING


def _drawn(plot: FrontPlot, trials: Sequence[Trained]) -> dict[str, object]:
    """What the template draws, in pixels from the top left corner."""

    def right(share: float) -> float:
        return round(LEFT + share * WIDTH, 1)

    def down(share: float) -> float:
        return round(MARGIN + (1 - share) * HEIGHT, 1)

    def ticks(axis: Axis) -> list[tuple[float, str]]:
        count = metric_of(axis.name).unit == "count"
        return [(axis.share(tick), f"{tick:,.0f}" if count else f"{tick:.4g}") for tick in axis.ticks()]

    steps: list[str] = []
    for place in plot.front():  # from one member, right and then up to the next
        steps += (
            [f"H{right(place.x)}", f"V{down(place.y)}"] if steps else [f"M{right(place.x)} {down(place.y)}"]
        )
    return {
        "width": LEFT + WIDTH + MARGIN,
        "height": MARGIN + HEIGHT + BOTTOM,
        "left": LEFT,
        "top": MARGIN,
        "right": right(1),
        "bottom": down(0),
        "across": [(right(share), text) for share, text in ticks(plot.cost)],
        "up": [(down(share), text) for share, text in ticks(plot.score)],
        "x_label": plot.cost.label + (", log scale" if plot.cost.log else ""),
        "y_label": plot.score.label,
        "x_title": plot.cost.title,
        "y_title": plot.score.title,
        "steps": " ".join(steps),
        "points": [  # the front last: it lies over the others
            (right(place.x), down(place.y), trials[place.trial])
            for place in sorted(plot.places, key=lambda place: trials[place.trial].on_front)
        ],
    }
