"""Reduction of a report of Nsight Systems.

The tables and the NVTX ranges in fixtures/nsight_recorded.sql are those of a real report, recorded on a processor. The
rows about a GPU are made by hand, here: none of them was recorded on one. Times are nanoseconds.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

from dxc.errors import HardwareError
from dxc.hardware.profiling import torch_profile
from dxc.hardware.profiling.nsight import profile, reduce
from tests.hardware.networks import one_operator

RECORDED = Path(__file__).parents[2] / "fixtures" / "nsight_recorded.sql"
NAMES = [
    "cudaLaunchKernel_v7000",
    "cudaDeviceSynchronize_v3020",
    "cudaMemcpyAsync_v3020",
    "void cudnn::cnn::implicit_convolve_sgemm<float>",
    "ampere_sgemm_128x64_tn",
    "void at::native::max_pool_forward_nhwc<float, int>",
    "batch 8",
]
LAUNCH, SYNCHRONISE, COPY, CONV, GEMM, POOL, BATCH_8 = range(7)
US = 1000
THREAD = 281542203019175  # process and thread in one number, as recorded
PROCESS = THREAD >> 24 << 24


def insert(db: sqlite3.Connection, table: str, **values: Any) -> None:
    """Insert a row. Columns that are not read and must not be NULL are 0."""
    needed = {name: 0 for _, name, _, not_null, *_ in db.execute(f"PRAGMA table_info({table})") if not_null}
    row = needed | values
    marks = ", ".join("?" * len(row))
    db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", list(row.values()))


def report(path: Path, *, ranges: bool = True, memory: bool = True) -> Path:
    """Batch 1 from 0 to 100 us, batch 8 from 200 to 500 us (its name is in StringIds); work before, in, and after."""
    with sqlite3.connect(path) as db:
        db.executescript(RECORDED.read_text())
        db.execute("DELETE FROM NVTX_EVENTS")
        db.executemany("INSERT INTO StringIds VALUES (?, ?)", enumerate(NAMES))
        named: list[tuple[int, int | None, str | None, int | None]] = [
            (0, 100, "batch 1", None),
            (200, 500, None, BATCH_8),
            (0, 999, "batch of somebody else", None),
            (600, None, "batch 1", None),  # began and never ended
        ]
        for start, end, text, text_id in named if ranges else []:
            insert(
                db,
                "NVTX_EVENTS",
                start=start * US,
                end=end and end * US,
                eventType=59,
                text=text,
                textId=text_id,
                globalTid=THREAD,
            )
        calls = [  # start us, duration us, correlation, name
            (100, 5, 1, LAUNCH),  # when the first range is over: between the ranges
            (0, 4, 2, LAUNCH),  # as it begins
            (20, 6, 3, LAUNCH),
            (30, 10, 4, COPY),
            (50, 20, 5, SYNCHRONISE),
            (210, 10, 6, LAUNCH),
            (230, 30, 7, LAUNCH),
        ]
        for start, took, correlation, name in calls:
            at = {"start": start * US, "end": (start + took) * US}
            insert(
                db,
                "CUPTI_ACTIVITY_KIND_RUNTIME",
                **at,
                correlationId=correlation,
                nameId=name,
                globalTid=THREAD,
            )
        kernels = [  # start us, duration us, correlation, name
            (155, 1000, 1, CONV),
            (15, 30, 2, CONV),
            (130, 10, 3, GEMM),  # runs after its range ended: launched in it
            (240, 25, 6, POOL),
            (480, 75, 7, CONV),
        ]
        for start, took, correlation, name in kernels:
            at = {"start": start * US, "end": (start + took) * US}
            insert(
                db,
                "CUPTI_ACTIVITY_KIND_KERNEL",
                **at,
                correlationId=correlation,
                demangledName=name,
                shortName=name,
                globalPid=PROCESS,
            )
        if memory:
            copy, blank = "CUPTI_ACTIVITY_KIND_MEMCPY", "CUPTI_ACTIVITY_KIND_MEMSET"
            insert(
                db,
                copy,
                start=35 * US,
                end=43 * US,
                correlationId=4,
                globalPid=PROCESS,
                bytes=4096,
                copyKind=1,
            )
            insert(db, blank, start=21 * US, end=23 * US, correlationId=3, globalPid=PROCESS, bytes=64)
        else:
            db.executescript("DROP TABLE CUPTI_ACTIVITY_KIND_MEMCPY; DROP TABLE CUPTI_ACTIVITY_KIND_MEMSET")
    return path


def rows(table: pd.DataFrame, batch: int, name: str) -> dict[str, tuple[float, float]]:
    own = table[(table["batch"] == batch) & (table["table"] == name)]
    return {row.name: (row.ms, row.share) for row in own.itertuples(index=False)}


def test_tables_by_hand(tmp_path: Path) -> None:
    table = reduce(report(tmp_path / "r.sqlite"))
    assert table["batch"].unique().tolist() == [1, 8]
    assert set(table["source"]) == {"nsight"}
    one = rows(table, 1, "operators")
    assert one["conv"] == pytest.approx((0.030, 0.75))  # 30 of 40 us of kernels
    assert one["matmul"] == pytest.approx((0.010, 0.25))
    assert one["pooling"] == (0.0, 0.0)
    assert rows(table, 1, "memory")["all"] == pytest.approx(
        (0.010, 10 / 50)
    )  # 8 + 2 us beside 40 us of kernels
    assert rows(table, 1, "api") == {
        "cudaLaunchKernel": pytest.approx((0.010, 0.25)),
        "cudaMemcpyAsync": pytest.approx((0.010, 0.25)),
        "cudaDeviceSynchronize": pytest.approx((0.020, 0.5)),
    }
    assert rows(table, 1, "latency")["batch"][0] == pytest.approx(0.100)

    eight = rows(table, 8, "operators")
    assert eight["conv"] == pytest.approx((0.075, 0.75))
    assert eight["pooling"] == pytest.approx((0.025, 0.25))
    assert rows(table, 8, "api") == {"cudaLaunchKernel": pytest.approx((0.040, 1.0))}
    assert rows(table, 8, "memory")["all"] == (0.0, 0.0)


def test_a_recorded_report(tmp_path: Path) -> None:
    """The ranges are those that nsys wrote. Without a GPU there are no kernels and no shares."""
    with sqlite3.connect(tmp_path / "r.sqlite") as db:
        db.executescript(RECORDED.read_text())
    table = reduce(tmp_path / "r.sqlite")
    assert rows(table, 1, "latency")["batch"][0] == pytest.approx((43954572 - 33858551) / 1e6)  # slept 10 ms
    assert rows(table, 8, "latency")["batch"][0] == pytest.approx((129214850 - 49047940) / 1e6)  # slept 80 ms
    assert set(table["batch"]) == {1, 8}  # 'batchnorm' is another's
    assert table["share"].isna().all()
    assert rows(table, 1, "api") == {}


def test_tables_that_are_absent_are_nothing(tmp_path: Path) -> None:
    table = reduce(report(tmp_path / "r.sqlite", memory=False))
    assert rows(table, 1, "memory")["all"] == (0.0, 0.0)


@pytest.fixture
def nsys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replaces nsys by a shell script, on a machine that claims to have a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "bin").mkdir()

    def put(text: str) -> None:
        (tmp_path / "bin" / "nsys").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / "nsys").chmod(0o755)

    return put


def test_nsys_records_the_worker_and_exports_its_report(tmp_path: Path, nsys: Callable[[str], None]) -> None:
    """The script makes the files of nsys. Its last argument but one is the output, or the input of an export."""
    report(tmp_path / "made.sqlite")
    out = tmp_path / "out"
    out.mkdir()
    nsys(
        f'echo "$*" >> {tmp_path}/said\n'
        f"case $1 in profile) : > {out}/nsight.nsys-rep; : > {out}/nsight.qdstrm;; "
        f"export) cp {tmp_path}/made.sqlite {out}/nsight.sqlite;; esac"
    )
    table = profile(tmp_path / "net.onnx", out, [1, 8])
    assert table["batch"].unique().tolist() == [1, 8]
    recorded, exported = (tmp_path / "said").read_text().splitlines()
    assert recorded.startswith("profile --trace=cuda,nvtx,cudnn,cublas ")
    worker = f"-m dxc.hardware.profiling.worker {tmp_path / 'net.onnx'} 1 8"
    assert recorded.endswith(f" --output {out}/nsight {sys.executable} {worker}")
    assert exported.startswith("export --type=sqlite ")
    assert exported.endswith(f" --output {out}/nsight.sqlite {out}/nsight.nsys-rep")
    assert [path.name for path in out.iterdir()] == ["nsight.nsys-rep"]  # what is large goes


def test_nsys_that_makes_nothing_is_said(tmp_path: Path, nsys: Callable[[str], None]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "nsight.nsys-rep").write_text("of a run before")
    said = r"nsys profile made no nsight.nsys-rep \(status 0: no permission / at all\)"
    nsys("echo '[1/1] 50% done'; echo no permission >&2; echo ' at all' >&2")
    with pytest.raises(HardwareError, match=said):
        profile(tmp_path / "net.onnx", out, [1])
    nsys(f": > {out}/nsight.nsys-rep; exit 3")  # half a report
    with pytest.raises(HardwareError, match=r"\(status 3: no message\)"):
        profile(tmp_path / "net.onnx", out, [1])
    assert list(out.iterdir()) == []


def test_an_nsys_that_hangs_is_ended_with_what_it_started(
    tmp_path: Path, nsys: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With profile=auto torch.profiler takes over. The program under nsys does not go on."""
    nsys(f"sleep 600 & echo $! > {tmp_path}/child; wait")
    monkeypatch.setattr(torch_profile, "AUTO_NSYS_SECONDS", 0.5)
    monkeypatch.setattr(torch_profile, "torch_rows", lambda *_: [("torch", 1, "operators", "conv", 1.0, 1.0)])
    network = one_operator(tmp_path / "net.onnx", "Relu", shape=["n", 3, 8, 8])
    profiled = torch_profile.profile_network(network, tmp_path / "out", accelerator="gpu")
    assert profiled.mode == "torch"
    assert profiled.note.endswith("not with Nsight Systems: nsys profile was not done within 0.5 s")
    child = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_without_nsys_or_a_gpu_it_is_said(
    tmp_path: Path, nsys: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    nsys("exit 1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(HardwareError, match="there is no CUDA device here"):
        profile(tmp_path / "net.onnx", tmp_path, [1])
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(HardwareError, match="there is no nsys on the PATH"):
        profile(tmp_path / "net.onnx", tmp_path, [1])


def test_reports_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="has no NVTX range 'batch N'"):
        reduce(report(tmp_path / "r.sqlite", ranges=False))
    (tmp_path / "text.sqlite").write_text("no database, whatever its name may say " * 10)
    with pytest.raises(HardwareError, match="text.sqlite is not an exported report"):
        reduce(tmp_path / "text.sqlite")
    with pytest.raises(HardwareError, match="missing.sqlite is not an exported report"):
        reduce(tmp_path / "missing.sqlite")
