"""Errors a user can cause. Each message says what is wrong, where, and what to do about it.

Entry scripts turn them into one message without a stack trace (`exit_cleanly`); everything else lets them
rise. A bug in dxc is never a DxcError.
"""

from __future__ import annotations

import contextlib
import math
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from dxc.masking import masked
from dxc.text import for_terminal


class DxcError(Exception):
    """Root of all errors that a user can cause and mend."""


class ConfigError(DxcError):
    """A configuration value that cannot work."""


class DataError(DxcError):
    """Rasters, points or chips that cannot be used."""


class TrainingError(DxcError):
    """Training that cannot go on."""


class CompressionError(DxcError):
    """A network that cannot be pruned or quantised."""


class ExportError(DxcError):
    """The exported file is not what it has to be."""


class HardwareError(DxcError):
    """What a network costs cannot be predicted, measured or profiled."""


class TrackingError(DxcError):
    """The MLflow store cannot be used."""


class SearchError(DxcError):
    """A search that cannot begin or go on."""


class ScalingError(DxcError):
    """A run on several devices that cannot begin or go on."""


class AnalysisError(DxcError):
    """A question that the tracked runs cannot answer."""


FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names of studies and packages: they become folders."""


def require_one_of(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ConfigError unless a configured value is one of these."""
    choices = list(choices)
    if value not in choices:
        raise ConfigError(f"{name}={value} is unknown; choose one of {', '.join(choices)}")


def require_whole(name: str, value: object, *, at_least: int) -> None:
    """Raise ConfigError unless a configured value is a whole number of at least so much."""
    if not is_whole(value, at_least):
        raise ConfigError(f"{name} must be a whole number of at least {at_least}, not {value!r}")


def is_whole(value: object, at_least: int, at_most: float = math.inf) -> bool:
    """Whether a value is a whole number within these bounds. True and false are not numbers here."""
    return isinstance(value, int) and not isinstance(value, bool) and at_least <= value <= at_most


def is_number(value: object) -> bool:
    """Whether a value is a real number, Python's or NumPy's. True and false are not numbers here."""
    return isinstance(value, Real) and not isinstance(value, bool)


def first_line(error: BaseException, *, named: bool = False) -> str:
    """The first line of what an error says; the name of its class where it says nothing.

    Args:
        error: of a library, say, which explains itself over many lines.
        named: whether the name of its class comes first.
    """
    name = type(error).__name__
    said = next(iter(str(error).strip().splitlines()), "").strip()
    if not said:
        return name
    return f"{name}: {said}" if named else said


class BadChip(NamedTuple):
    """One chip (or one file of it) that cannot be used, and why."""

    path: Path
    reason: str


class BadChipsError(DataError):
    """Every chip that cannot be used, at once: a user mends them in one go."""

    def __init__(self, bad: Sequence[BadChip], *, root: Path) -> None:
        self.bad = list(bad)
        listing = "\n".join(f"  {chip.path}: {chip.reason}" for chip in self.bad)
        noun = "chip" if len(self.bad) == 1 else "chips"
        super().__init__(
            f"{len(self.bad)} bad {noun} under {root}:\n{listing}\n"
            "Mend or remove them, or go on without them: source.on_bad_chip=skip. Photos with other bands: "
            "source.photo_bands=[red,green,blue]; chips of another size: data.size=PIXELS, or data.size=any for a "
            "network that takes any."
        )


class Stopped(BaseException):
    """The user or the scheduler stopped the process; not an Exception, so that nothing swallows it."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}")


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """SIGINT and SIGTERM raise Stopped in the main thread: what is open is closed before the process ends."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(signum)

    try:
        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever owns it handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def exit_cleanly() -> Iterator[None]:
    """Around an entry script's work: a DxcError becomes its message on stderr and exit status 2.

    Stopped becomes one line and the status a shell expects (128 + signal number). Use it inside the function
    that hydra.main decorates: outside of it Hydra has already printed a stack trace.
    """
    try:
        yield
    except DxcError as error:
        print(f"\nerror: {for_terminal(masked(str(error)), lines=True)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before a run is open, or where none is
        print("\nstopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Stopped as stop:
        print(f"\n{stop}", file=sys.stderr)
        sys.exit(128 + stop.signum)
