"""Prints where MLflow's UI compares the designs of each study: `python -m dxc.tracking STORE [SERVER]`."""

from __future__ import annotations

import sys

from dxc.errors import exit_cleanly
from dxc.text import for_terminal
from dxc.tracking.reader import Reader
from dxc.tracking.view import UI, view_link

LISTED = 10  # studies, the newest


def links(uri: str, server: str = UI) -> list[str]:
    """A line a study, the newest first: its name, and the address of its designs.

    Args:
        uri: address of the store.
        server: address of MLflow's UI.
    """
    studies = [study for study in reversed(Reader(uri).studies()) if study.name != "Default"]
    width = max((len(study.name) for study in studies[:LISTED]), default=0)
    lines = [
        f"{study.name:<{width}}  {server}/{view_link(study.experiment_id)}" for study in studies[:LISTED]
    ]
    if len(studies) > LISTED:
        lines.append(f"... and {len(studies) - LISTED} older ones")
    return lines


if __name__ == "__main__":
    with exit_cleanly():
        for line in links(*sys.argv[1:]):
            print(for_terminal(line))
