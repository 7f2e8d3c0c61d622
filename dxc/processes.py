"""Processes that end with the one that started them, whatever ended that, kill -9 included.

end_with_parent       called by a process of ours, such as a pool's worker
ending_with_parent    a command line for any program: `python processes.py PARENT PROGRAM ...` becomes that program
kill_group            ends a process, and what it started, at once

This file is run by itself too: it imports the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h
EVERY_S = 0.5  # how often a parent is looked for that cannot be waited for


@functools.cache
def end_with_parent(parent: int | None = None) -> None:
    """Have this process end when the one that started it has ended; else a worker waits for work for ever.

    parent: the starter's process id, where multiprocessing does not know it (a launcher's worker, a subprocess).
    A thread watches. The kernel could do it (PR_SET_PDEATHSIG), but at the end of the *thread* that started this
    process, and launchers start workers from threads that end before the search does.
    """
    known = multiprocessing.parent_process()

    def watch() -> None:
        if parent is None and known is not None:
            known.join()  # waits for the end of a pipe that the parent holds
        while parent is not None and os.getppid() == parent:
            time.sleep(EVERY_S)
        os._exit(1)

    if parent is not None or known is not None:
        threading.Thread(target=watch, name="end with parent", daemon=True).start()


def ending_with_parent(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` until it ends or this process does. To be waited for in the thread that
    starts it. Raises FileNotFoundError where there is no such program."""
    program = shutil.which(command[0])
    if program is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), program, *command[1:]]


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Kill a process with all that it started, and still runs. Whoever started it waits for it then.

    Args:
        process: that began a group of its own (start_new_session=True).
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def main(parent: int, command: list[str]) -> int:
    """Become `command`, which the kernel kills with the parent; where it does not do that, run and watch it."""
    try:
        kernel = ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) == 0
    except (AttributeError, OSError):  # not Linux
        kernel = False
    if os.getppid() != parent:  # it had ended before the kernel was asked
        return 1
    if kernel:
        os.execv(command[0], command)
    child = subprocess.Popen(command)
    while child.poll() is None:
        if os.getppid() != parent:
            child.kill()
        time.sleep(EVERY_S / 10)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
