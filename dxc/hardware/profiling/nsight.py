"""Records an exported file's inference on a GPU with Nsight Systems, and reduces the report to tables.

Reads the SQLite file of `nsys export`: NVTX_EVENTS (our ranges, 'batch 8'), CUPTI_ACTIVITY_KIND_RUNTIME (API calls),
_KERNEL, _MEMCPY and _MEMSET, StringIds (names). Times are in nanoseconds. A table exists only if something of its kind
happened. (docs.nvidia.com/nsight-systems/UserGuide: "SQLite schema reference")
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dxc.errors import HardwareError
from dxc.hardware.profiling.cupti import RANGE  # our NVTX ranges are called 'batch 8' too
from dxc.hardware.profiling.tables import COLUMNS, gpu_rows
from dxc.processes import ending_with_parent, kill_group

if TYPE_CHECKING:
    import pandas as pd

REPORT = "nsight"
TIMEOUT_SECONDS = 600
RECORD_OPTIONS = (
    "--trace=cuda,nvtx,cudnn,cublas",
    "--sample=none",
    "--cpuctxsw=none",
    "--force-overwrite=true",
)


def profile(
    onnx: Path, out: Path, batches: Sequence[int], *, timeout_seconds: float = TIMEOUT_SECONDS
) -> pd.DataFrame:
    """Record and reduce. The report stays in `out` as nsight.nsys-rep.

    Args:
        onnx: the file.
        out: folder of the report.
        batches: batch sizes.
        timeout_seconds: time limit of each command of nsys.

    Raises:
        HardwareError: nsys cannot record.
    """
    sqlite = record(onnx, out, batches, timeout_seconds=timeout_seconds)
    try:
        return reduce(sqlite)
    finally:
        sqlite.unlink(
            missing_ok=True
        )  # several times as large as the report, and `nsys export` can make it again


def record(
    onnx: Path, out: Path, batches: Sequence[int], *, timeout_seconds: float = TIMEOUT_SECONDS
) -> Path:
    """Run dxc.hardware.profiling.worker under `nsys profile` and export its report. Returns the path of the .sqlite.

    Args:
        onnx: the file.
        out: folder of the report.
        batches: batch sizes.
        timeout_seconds: time limit of each command of nsys.

    Raises:
        HardwareError: nsys or a GPU is missing, or nsys fails or takes too long.
    """
    import torch

    nsys = shutil.which("nsys")
    if nsys is None:
        raise HardwareError(
            "there is no nsys on the PATH; install NVIDIA Nsight Systems, or use profile=torch"
        )
    if not torch.cuda.is_available():
        raise HardwareError("there is no CUDA device here")
    report, sqlite = out / f"{REPORT}.nsys-rep", out / f"{REPORT}.sqlite"
    worker = [sys.executable, "-m", "dxc.hardware.profiling.worker", str(onnx.resolve()), *map(str, batches)]
    _nsys(
        [nsys, "profile", *RECORD_OPTIONS, "--output", str(out / REPORT), *worker],
        report,
        timeout_seconds,
    )
    _nsys(
        [nsys, "export", "--type=sqlite", "--force-overwrite=true", "--output", str(sqlite), str(report)],
        sqlite,
        timeout_seconds,
    )
    return sqlite


def _nsys(command: list[str], made: Path, timeout_seconds: float) -> None:
    """Run nsys, which has to make a file. It may end with status 0 but no file, with the reason on stderr.

    Args:
        command: the program and its arguments.
        made: the file.
        timeout_seconds: after it, nsys and what it has started are killed.
    """
    made.unlink(missing_ok=True)
    try:
        # a group of its own, because the program that nsys records goes on when only nsys is killed
        running = subprocess.Popen(
            ending_with_parent(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise HardwareError(f"nsys {command[1]} could not be run: {error}") from error
    ended = False
    try:
        output, errors = running.communicate(timeout=timeout_seconds)
        ended = True
    except subprocess.TimeoutExpired as error:
        raise HardwareError(f"nsys {command[1]} was not done within {timeout_seconds:g} s") from error
    finally:
        if not ended:
            kill_group(running)
            running.communicate()
    # the recording, tens of MB, stays there if nsys could not make a report from it
    made.with_suffix(".qdstrm").unlink(missing_ok=True)
    if running.returncode or not made.is_file():
        lines = [line.strip() for line in (output + "\n" + errors).splitlines()]
        said = [line for line in lines if line and not re.search(r"\d%", line)]  # no progress bars
        made.unlink(missing_ok=True)
        raise HardwareError(
            f"nsys {command[1]} made no {made.name} (status {running.returncode}: "
            f"{' / '.join(said[-3:]) or 'no message'}). `nsys status -e` says what is missing, such as the "
            "permission to profile (administrators: developer.nvidia.com/ERR_NVGPUCTRPERM)"
        )


def reduce(sqlite: Path) -> pd.DataFrame:
    """Read the tables of dxc.hardware.profiling.tables from an exported report: source 'nsight', one set per batch.

    A kernel or copy belongs to the range in which its API call began, however late it ran. Both share a correlationId.
    Raises HardwareError if the file is no such report or lacks dxc's ranges.
    """
    import pandas as pd

    try:
        with closing(sqlite3.connect(f"{sqlite.resolve().as_uri()}?mode=ro", uri=True)) as db:
            names = dict(_read(db, "StringIds", "id, value"))
            ranges = [
                (int(ours[1]), start, end)
                for text, text_id, start, end in _read(db, "NVTX_EVENTS", "text, textId, start, end")
                if (ours := re.fullmatch(rf"{RANGE}(\d+)", text or names.get(text_id, "")))
                and end is not None
            ]
            calls = _read(db, "CUPTI_ACTIVITY_KIND_RUNTIME", "correlationId, nameId, start, end")
            kernels = _read(db, "CUPTI_ACTIVITY_KIND_KERNEL", "correlationId, demangledName, start, end")
            copies = [
                *_read(db, "CUPTI_ACTIVITY_KIND_MEMCPY", "correlationId, 'memcpy', start, end"),
                *_read(db, "CUPTI_ACTIVITY_KIND_MEMSET", "correlationId, 'memset', start, end"),
            ]
    except sqlite3.Error as error:
        raise HardwareError(f"{sqlite} is not an exported report of Nsight Systems: {error}") from error
    if not ranges:
        raise HardwareError(
            f"{sqlite} has no NVTX range '{RANGE}N': it was not recorded by dxc, or nsys lost them"
        )

    rows: list[tuple[Any, ...]] = []
    for batch in sorted({batch for batch, _, _ in ranges}):
        spans = [(start, end) for each, start, end in ranges if each == batch]
        inside = [call for call in calls if any(start <= call[2] < end for start, end in spans)]
        launched = {call[0] for call in inside}
        by_kernel: dict[str, float] = {}
        for correlation, name, start, end in kernels:
            if correlation in launched:
                text = names.get(name, str(name))
                by_kernel[text] = by_kernel.get(text, 0.0) + (end - start) / 1e6
        memory = sum((end - start) / 1e6 for each, _, start, end in copies if each in launched)
        api: dict[str, float] = {}
        for _, name, start, end in inside:
            # names such as cudaLaunchKernel_v7000: calls are counted together across versions
            text = names.get(name, str(name)).split("_v")[0]
            api[text] = api.get(text, 0.0) + (end - start) / 1e6
        rows += gpu_rows("nsight", batch, by_kernel, memory, api)
        wall = sum(end - start for start, end in spans) / len(spans) / 1e6
        rows.append(("nsight", batch, "latency", "batch", wall, float("nan")))
    return pd.DataFrame(rows, columns=COLUMNS)


def _read(db: sqlite3.Connection, table: str, columns: str) -> list[tuple[Any, ...]]:
    """Rows of a table; none if it is absent. Both names come from this module, not from a user."""
    there = db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone()
    return db.execute(f"SELECT {columns} FROM {table}").fetchall() if there else []
