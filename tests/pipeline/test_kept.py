"""Runs that need the same networks at the same time."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from dxc.pipeline.kept import alone_in, kept_folder

HOLD = """
import sys, time
from pathlib import Path
from dxc.pipeline.kept import alone_in
with alone_in(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(float(sys.argv[2]))
    print(time.time(), flush=True)
"""


def _hold(folder: Path, seconds: float) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "in\n"
    return holder


def test_one_waits_for_the_other(tmp_path: Path) -> None:
    folder = kept_folder(tmp_path, "0" * 12)
    holder = _hold(folder, 1.0)
    with alone_in(folder):
        entered = time.time()
    left = float(holder.communicate()[0])
    assert entered >= left


def test_other_networks_need_not_wait(tmp_path: Path) -> None:
    holder = _hold(kept_folder(tmp_path, "0" * 12), 60)
    with alone_in(kept_folder(tmp_path, "1" * 12)):
        assert holder.poll() is None
    holder.kill()
    holder.wait()


def test_one_that_is_killed_lets_go(tmp_path: Path) -> None:
    folder = kept_folder(tmp_path, "0" * 12)
    holder = _hold(folder, 60)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with alone_in(folder):
        pass


def test_a_folder_that_cannot_be_locked_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "stages").write_text("a file in the place of the folder")
    with alone_in(kept_folder(tmp_path, "0" * 12)):
        pass
