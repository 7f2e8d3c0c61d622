"""A terminal for programs under test, and the screen that a person would see."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ESCAPE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


class Screen:
    """What is on a screen: lines, where the cursor is, and whether it shows. Knows the sequences that rich writes."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.lines = [""]
        self.row = self.column = 0
        self.cursor = True
        self.colours = 0
        self._rest = ""

    def feed(self, text: str) -> None:
        text = self._rest + text
        begun = re.search(r"\x1b(\[[0-9;?]*)?\Z", text)  # a sequence of which the rest is still to come
        self._rest = begun[0] if begun else ""
        text = text.removesuffix(self._rest)
        at = 0
        while at < len(text):
            if match := ESCAPE.match(text, at):
                self._obey(match[1], match[2])
                at = match.end()
                continue
            self._write(text[at])
            at += 1

    def _obey(self, argument: str, kind: str) -> None:
        if kind == "A":
            self.row = max(0, self.row - int(argument or 1))
        elif kind == "K":
            assert argument == "2"
            self.lines[self.row] = ""
        elif (argument, kind) in (("?25", "l"), ("?25", "h")):
            self.cursor = kind == "h"
        elif kind == "m":
            self.colours += any(each[:1] in "39" and len(each) == 2 for each in argument.split(";"))
        else:
            raise AssertionError(f"an unknown sequence: {argument}{kind}")

    def _write(self, char: str) -> None:
        if char == "\r":
            self.column = 0
            return
        if char == "\n" or self.column >= self.width:
            self.row, self.column = self.row + 1, 0 if char != "\n" else self.column
            self.lines += [""] * (self.row + 1 - len(self.lines))
        if char != "\n":
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + char + line[self.column + 1 :]
            self.column += 1


class Terminal:
    """A program in a terminal of its own.

    Args:
        command: of the program.
        cwd: where it runs.
        env: added to the environment.
        width: columns.
        height: lines.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        width: int = 80,
        height: int = 30,
    ) -> None:
        self.screen = Screen(width)
        self.raw = ""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self._slave, self._before = slave, termios.tcgetattr(slave)
        unset = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
        inherited = {key: value for key, value in os.environ.items() if key not in unset}
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**inherited, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **(env or {})},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches it
        )

    def until(self, text: str, seconds: float = 120) -> None:
        """Read until the screen shows a text."""
        deadline = time.monotonic() + seconds
        while not any(text in line for line in self.screen.lines):
            assert time.monotonic() < deadline, f"no {text!r} in {self.screen.lines}"
            self._read()

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self, number: signal.Signals | None = None, seconds: float = 120) -> int:
        """Send a signal, if any, and wait for the end. Returns the exit status."""
        if number is not None:
            self.process.send_signal(number)
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end: {self.screen.lines}"
            self._read()
        while self._read():
            pass
        assert termios.tcgetattr(self._slave) == self._before
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def _read(self) -> bool:
        """Take what is there, after a moment; whether there was something."""
        ready, _, _ = select.select([self._master], [], [], 0.1)
        if not ready:
            return False
        content = os.read(self._master, 65536)
        while True:
            try:
                text = content.decode()
                break
            except UnicodeDecodeError:
                content += os.read(self._master, 1)
        self.raw += text
        self.screen.feed(text)
        return True
