"""Times analyze.py on 10,000 tracked runs, the first time and later, compared with MLflow's own search_runs.

    python benchmarks/analysis_reading.py            about 5 minutes and 200 MB of temporary disk on 4 cores

The SQLite store has finished runs like real trials: 60 params, 31 metrics (9 of them learning curves), 26 tags, and one
run ends every minute. Each reading is a fresh process and is timed from before its imports to the table:
    first     read_runs with an empty cache
    later     read_runs again, when nothing is new
    list      mlflow.search_runs(output_format="list"): MLflow's objects, no table
    pandas    mlflow.search_runs(): MLflow's own table
    import    opens the store with MLflow and reads nothing; all others include it
    whole     python analyze.py with an empty cache: reading, the predictions of every run (800 chips), front, certainty
              (1,000 draws), tables, figures and page
    again     the same command a second time
Peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _record import ROOT, save, spread

from dxc.tracking.store import Store

STUDY = "benchmark"
OBJECTIVES = ("accuracy", "latency_ms", "onnx_mb")
METRICS = [*OBJECTIVES, *(f"metric{number}" for number in range(19))] + [
    f"{curve}.fold{fold}" for fold in (1, 2, 3) for curve in ("train_loss", "val_loss", "val_accuracy")
]
PARAMS = [f"group{number % 6}.knob{number}" for number in range(60)]
TAGS = [f"dxc.tag{number}" for number in range(14)]  # few values
UNIQUE_TAGS = [f"dxc.unique{number}" for number in range(6)]  # a value of its own in every run
READING = """
import json, resource, time
started = time.perf_counter()
from pathlib import Path
if {way!r} in ("first", "later"):
    from dxc.analysis.runs import read_runs
    runs = len(read_runs({uri!r}, [{study!r}], cache_dir=Path({cache!r})).frame)
else:
    import mlflow
    client = mlflow.MlflowClient({uri!r})
    experiment = client.get_experiment_by_name({study!r}).experiment_id
    runs = 0
    if {way!r} != "import":
        mlflow.set_tracking_uri({uri!r})
        runs = len(mlflow.search_runs([experiment], output_format={way!r}))
seconds = time.perf_counter() - started
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, runs]))
"""
WAYS = ("first", "later", "list", "pandas", "import")
WHOLE = ("whole", "again")


def make_predictions(folder: Path, kinds: int = 50) -> list[Path]:
    """Out-of-fold predictions of 800 chips in 5 folds, as a training run writes them. Runs share `kinds` of them."""
    folder.mkdir()
    paths = []
    for kind in range(kinds):
        rng = np.random.default_rng(kind)
        label = np.arange(800) % 2
        right = rng.random(800) < rng.uniform(0.75, 0.97)
        table = {
            "region": "NE",
            "name": [f"NE_{chip:05d}" for chip in range(800)],
            "label": label,
            "fold": [f"fold{1 + chip % 5}" for chip in range(800)],
            "probability": np.where(right == (label == 1), 0.9, 0.1).astype(np.float32),
        }
        paths.append(folder / f"{kind}.parquet")
        pd.DataFrame(table).to_parquet(paths[-1], index=False)
    return paths


def make_store(file: Path, count: int) -> str:
    """Make a store of `count` finished runs. Returns its address. MLflow makes the tables, and SQL fills them."""
    uri = f"sqlite:///{file}"
    experiment = Store(uri, STUDY, patience_s=0).experiment_id
    rng = random.Random(0)
    predictions = make_predictions(file.parent / "predictions")
    now_ms = int(time.time() * 1000)
    with closing(sqlite3.connect(file)) as database:
        for number in range(count):
            run_id = f"{rng.getrandbits(128):032x}"
            end_ms = now_ms - (count - number) * 60_000
            artifacts = file.parent / "artifacts" / run_id
            artifacts.mkdir(parents=True)
            os.link(predictions[number % len(predictions)], artifacts / "predictions.parquet")
            row = (run_id, f"run {number}", end_ms - 200_000, end_ms, artifacts.as_uri(), experiment)
            database.execute(
                "INSERT INTO runs (run_uuid, name, start_time, end_time, artifact_uri, experiment_id, status, "
                "lifecycle_stage, source_type, user_id) "
                "VALUES (?, ?, ?, ?, ?, ?, 'FINISHED', 'active', 'LOCAL', 'somebody')",
                row,
            )
            few = [
                (key, str(rng.randrange(1 + place % 5)), run_id) for place, key in enumerate(PARAMS + TAGS)
            ]
            tags = few[len(PARAMS) :] + [(key, f"{rng.getrandbits(64):x}", run_id) for key in UNIQUE_TAGS]
            tags += [("dxc.kind", "trial", run_id), ("dxc.state", "finished", run_id)]
            tags += [(f"mlflow.{key}", "text", run_id) for key in ("user", "source.name", "source.type")]
            tags += [("mlflow.runName", f"run {number}", run_id)]
            database.executemany(
                "INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)", few[: len(PARAMS)]
            )
            database.executemany("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", tags)
            database.executemany(
                "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) "
                "VALUES (?, ?, ?, 0, 0, ?)",
                [(key, rng.random(), end_ms, run_id) for key in METRICS],
            )
        database.commit()
    return uri


def read(way: str, uri: str, cache: Path) -> tuple[float, float, int]:
    """(seconds, peak MB, runs) of one reading."""
    script = READING.format(way=way, uri=uri, study=STUDY, cache=str(cache))
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak, runs = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak, runs


def analyse(uri: str, cache: Path) -> tuple[float, float, int]:
    """(seconds, peak MB, runs) of `python analyze.py`."""
    requested = [
        f"study={STUDY}",
        f"tracking.uri={uri}",
        f"cache_dir={cache}",
        f"out={cache}/reports",
        "log=false",
    ]
    script = (
        "import resource, subprocess, sys, time; started = time.perf_counter(); "
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True, check=True); "
        "took = time.perf_counter() - started; "
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024; "
        "print(took, peak, done.stdout.split()[0])"
    )
    command = [sys.executable, "-c", script, sys.executable, str(ROOT / "analyze.py"), *requested]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    took, peak, designs = done.stdout.split()
    return float(took), float(peak), int(designs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/analysis_reading.json")
    arguments = parser.parse_args()

    seconds: dict[str, list[float]] = {way: [] for way in (*WAYS, *WHOLE)}
    peaks: dict[str, list[float]] = {way: [] for way in (*WAYS, *WHOLE)}
    with tempfile.TemporaryDirectory() as name:
        uri = make_store(Path(name) / "mlflow.db", arguments.runs)
        for repeat in range(arguments.repeats):
            cache = Path(name) / f"cache{repeat}"
            order = ("list", "pandas", "first", "later", "import") if repeat % 2 else WAYS
            for way in order:
                took, peak, runs = read(way, uri, cache)
                if runs != (0 if way == "import" else arguments.runs):
                    raise SystemExit(f"{way} found {runs} runs instead of {arguments.runs}")
                seconds[way].append(took)
                peaks[way].append(peak)
            for way in WHOLE:
                took, peak, runs = analyse(uri, Path(name) / f"whole{repeat}")
                seconds[way].append(took)
                peaks[way].append(peak)

    print(f"{arguments.runs} runs, {arguments.repeats} times:")
    for way in seconds:
        print(f"  {way}: {spread(seconds[way])} s, {max(peaks[way]):.0f} MB")
    ratios: dict[str, Any] = {}
    for over, under in (
        ("first", "list"),
        ("first", "pandas"),
        ("later", "first"),
        ("whole", "pandas"),
        ("again", "pandas"),
    ):
        ratios[f"{over}_over_{under}"] = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
        print(f"  {over} / {under}: {spread(ratios[f'{over}_over_{under}'], 3)}")
    beyond = [a - b for a, b in zip(seconds["later"], seconds["import"], strict=True)]
    print(f"  later, beyond opening the store with MLflow: {statistics.median(beyond):.2f} s")
    if arguments.save:
        about = {"runs": arguments.runs, "repeats": arguments.repeats}
        save("analysis_reading", about | {"seconds": seconds, "peak_memory_mb": peaks, "ratios": ratios})


if __name__ == "__main__":
    main()
