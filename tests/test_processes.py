"""Every process that dxc starts ends with it, also where it was killed and could not say so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dxc.config.compose import PROJECT_ROOT
from dxc.processes import ending_with_parent, kill_group

SOON_S = 5.0


@contextmanager
def _started(script: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """A Python process that runs `script` and prints a line when its children are at work."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=PROJECT_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        yield process
    finally:
        if process.poll() is None:
            for each in psutil.Process(process.pid).children(recursive=True):
                each.kill()
        process.kill()
        process.wait()


def _left(process: subprocess.Popen, *, within_s: float = SOON_S) -> list[psutil.Process]:
    """Descendants that are still there so long after kill -9."""
    family = psutil.Process(process.pid).children(recursive=True)
    assert family, "it has no children"
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + within_s
    while (alive := [each for each in family if runs(each)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for each in alive:
        each.kill()
    return alive


def runs(process: psutil.Process) -> bool:
    """Whether it is alive."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # dead, and nobody has asked for its status yet
    except psutil.NoSuchProcess:
        return False


SAY_READY = """
import sys, threading, time
from pathlib import Path
import psutil
folder = Path(sys.argv[1])
def ready_when(seen, settle_s=0.0):
    def look():
        while not seen():
            time.sleep(0.05)
        time.sleep(settle_s)
        print("ready", flush=True)
    threading.Thread(target=look, daemon=True).start()
def children():
    return len(psutil.Process().children(recursive=True))
"""
POOLS = {
    # networks of a search: ten processes of half a gigabyte stayed for 40 minutes
    "costing": """
import dxc.search.costs as costs
from tests.search.test_costs_of_networks import _networks
costs.WORTH_PROCESSES = 1
networks, hardware = _networks("data=5ch", "model.kernel=3", "model.stride=2", "model.padding=1")
ready_when(lambda: any(folder.rglob("*.json")))
costs.NetworkCosts(hardware, folder).compute(networks, jobs=2)
""",
    "costing, starting": """
import dxc.search.costs as costs
from tests.search.test_costs_of_networks import _networks
costs.WORTH_PROCESSES = 1
networks, hardware = _networks("data=5ch", "model.kernel=3", "model.stride=2", "model.padding=1")
ready_when(lambda: children() >= 3)
costs.NetworkCosts(hardware, folder).compute(networks, jobs=2)
""",
    "synthetic regions": """
from dxc.synthetic.source import SyntheticSource
ready_when(lambda: children() >= 3, settle_s=1.0)
SyntheticSource(chips=1200, cache_dir=str(folder), jobs=2).prepare()
""",
    "chips": """
from dxc.data.cache import _mapper
ready_when(lambda: children() >= 4, settle_s=1.0)
with _mapper(2) as mapper:
    list(mapper(time.sleep, [600, 600]))
""",
    "measuring": """
from dxc.hardware.measure.latency import StopRule, measure
from tests.hardware.networks import one_operator
network = one_operator(folder / "net.onnx", "Relu", shape=["n", 3, 8, 8])
def measured():
    workers = [each for each in psutil.Process().children() if "worker.py" in " ".join(each.cmdline())]
    return any(each.cpu_times().user > 2 for each in workers)
ready_when(measured)
measure(network, stop=StopRule(warmup_seconds=600, max_seconds=600))
""",
    # torch looks after these itself, every 5 s
    "loader": """
from torch.utils.data import DataLoader
batches = iter(DataLoader(range(100), num_workers=2))
next(batches)
ready_when(lambda: True)
time.sleep(600)
""",
}


@pytest.mark.long
@pytest.mark.parametrize("name", POOLS)
def test_the_workers_of_a_pool(name: str, tmp_path: Path) -> None:
    with _started(SAY_READY + POOLS[name], str(tmp_path)) as process:
        assert _left(process, within_s=15 if name == "loader" else SOON_S) == []


def test_any_program() -> None:
    """The command is itself: its output, its status, the signal that ended it; and it ends with its parent."""
    shell = ["sh", "-c", "cat; echo $1 >&2; exit 3", "sh", "a b"]
    done = subprocess.run(ending_with_parent(shell), input=b"said", capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"said", b"a b\n")
    assert subprocess.run(ending_with_parent(["sh", "-c", "kill -TERM $$"])).returncode == -signal.SIGTERM
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        ending_with_parent(["no-such-program"])
    waiting = """
import subprocess
from dxc.processes import ending_with_parent
ready_when(lambda: any(each.name() == "sleep" for each in psutil.Process().children()))
subprocess.run(ending_with_parent(["sleep", "600"]))
"""
    with _started(SAY_READY + waiting, "unused") as process:
        assert _left(process) == []


def test_any_program_where_the_kernel_does_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: the program is watched."""
    import ctypes

    from dxc import processes

    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert processes.main(os.getppid(), [sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert processes.main(os.getppid(), ["sh", "-c", "kill -TERM $$"]) == 128 + signal.SIGTERM
    assert processes.main(os.getpid(), ["sleep", "600"]) == 1  # that is not its parent (any more)
    watched = """
import ctypes, os, subprocess
from dxc import processes
program = "import ctypes, os, sys; ctypes.CDLL = lambda _: object(); from dxc import processes; "
program += f"processes.main({os.getpid()}, ['sleep', '600'])"
ready_when(lambda: any(each.name() == "sleep" for each in psutil.Process().children(recursive=True)))
subprocess.run([sys.executable, "-c", program])
"""
    with _started(SAY_READY + watched, "unused") as process:
        assert _left(process) == []


def test_a_group_ends_with_what_it_started() -> None:
    """Also what a process left behind that has ended itself; there is no error where nothing is left."""
    script = (
        "import subprocess, sys; "
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], stdout=2).pid)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    said, _ = process.communicate()
    left = psutil.Process(int(said))
    assert runs(left)
    kill_group(process)
    deadline = time.monotonic() + SOON_S
    while runs(left) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(left)
    kill_group(process)
