"""What only a GPU can show, in independent parts (make gpu).

    make gpu                                                   within 8 minutes on one GPU, into benchmarks/results/gpu/
    python benchmarks/gpu.py --parts environment engines       some of the parts
    python benchmarks/gpu.py --tiny --device cpu               all parts in small, to try the script without a GPU

Each part is a process of its own with a time limit. Its figures are written when it ends, to OUT/PART.json with device
and date, so that a part that fails or takes too long costs only itself. It needs the packages of dxc; without MLflow
the parts that train are left out.

--chips names a folder of chips as prepare.py cuts them (source=chips). Without it, the parts that train make synthetic
watersheds, which takes minutes where the packages for that are installed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

SECONDS = {
    "environment": 30, "tests": 80, "determinism": 80, "precision": 80, "train": 60, "engines": 150,
    "throughput": 50, "latency": 60, "schedule": 60, "search": 30, "resnet50": 30,
}  # fmt: skip
"""Time limit of each part, in the order in which they run."""
UNTIMED = ("tests", "determinism", "precision")
"""Parts that measure no time. They run beside each other, before the others."""


class Setting:
    """What the parts are told: device (cuda or cpu), tiny, chips (a folder, or None), work and out (folders)."""

    def __init__(self, device: str, tiny: bool, chips: Path | None, work: Path, out: Path) -> None:
        self.device, self.tiny, self.chips, self.work, self.out = device, tiny, chips, work, out

    def overrides(self, *more: str) -> list[str]:
        """Options of train.py for the chips at hand, in folders that are thrown away."""
        source = (
            ["source=chips", f"source.root={self.chips}"]
            if self.chips
            else [f"source.chips={16 if self.tiny else 400}"]
        )
        hardware = "a100" if self.device == "cuda" else "cpu"
        small = (
            ["model.width=8", "model.pool=max", "trainer.max_epochs=1", "data.folds=2"] if self.tiny else []
        )
        return [
            f"hardware={hardware}", "hardware.predictors=[]", *source, *small, "progress=false",
            f"cache_dir={self.work}/cache", f"tracking.uri=sqlite:///{self.work}/mlflow.db", *more,
        ]  # fmt: skip


def trained(setting: Setting, *overrides: str) -> dict[str, Any]:
    """Run train.py's own work in this process, and return its metrics and how long it took."""
    from hydra import compose, initialize_config_dir

    import dxc.config.compose  # noqa: F401  registers the resolvers
    from dxc.config.plan import Plan
    from dxc.pipeline.run import run

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plan = Plan.of(compose("train", overrides=setting.overrides(*overrides)))
    out = Path(tempfile.mkdtemp(dir=setting.work))
    began = time.perf_counter()
    result = run(plan, out)
    return {
        "overrides": list(overrides), "wall_s": time.perf_counter() - began, "metrics": result.metrics,
        "folds": result.fold_scores, "measured_on": result.measured_on, "notes": list(result.notes),
        "onnx": str(result.onnx),
    }  # fmt: skip


def environment(setting: Setting) -> dict[str, Any]:
    """Versions, packages, and the peaks that all shares refer to."""
    import importlib.metadata as metadata

    import torch

    from dxc.hardware.schedule.roofline import measure_peaks

    packages = (
        "torch",
        "pytorch-lightning",
        "onnx",
        "onnxruntime",
        "mlflow-skinny",
        "mlflow",
        "triton",
        "rasterio",
    )
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": versions,
        "cores": os.cpu_count(),
    }
    if setting.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name, "memory_mb": properties.total_memory / 1e6, "cuda": torch.version.cuda,
            "multiprocessors": properties.multi_processor_count, "cudnn": torch.backends.cudnn.version(),
        }  # fmt: skip
    return found | {"peaks": measure_peaks(torch.device(setting.device), "bf16")._asdict()}


def engines(setting: Setting) -> dict[str, Any]:
    """Ways to train; see training_engines.py."""
    import training_engines

    return training_engines.compare(
        setting.device,
        training_engines.grid(tiny=setting.tiny),
        seconds=0.03 if setting.tiny else 0.7,
        tiny=setting.tiny,
    )


def train(setting: Setting) -> dict[str, Any]:
    """One whole run: chips, folds, export, prediction, measurement, profile, record."""
    return trained(setting, "profile=auto", "trainer.engine=auto")


def determinism(setting: Setting) -> dict[str, Any]:
    """The same command twice: equal accuracies, fold by fold."""
    options = (
        "profile=none", "hardware.measure=false", "again=true", "data.folds=2", "trainer.max_epochs=3",
        "model.pool=max",
    )  # fmt: skip
    figures = {}
    for engine in ("graph", "eager"):
        both = [trained(setting, *options, f"trainer.engine={engine}") for _ in range(2)]
        figures[engine] = {"equal": both[0]["folds"] == both[1]["folds"], "runs": both}
    return figures


def precision(setting: Setting) -> dict[str, Any]:
    """Accuracy of engines and precisions over seeds: they agree within the spread of seeds."""
    figures: dict[str, Any] = {}
    for engine, kind in (("graph", "bf16-mixed"), ("graph", "32-true"), ("eager", "bf16-mixed")):
        runs = [
            trained(
                setting, "profile=none", "hardware.measure=false", f"seed={100 * seed}", "study=precision",
                "model.pool=max", f"trainer.engine={engine}", f"trainer.precision={kind}",
                f"trainer.max_epochs={1 if setting.tiny else 12}",
            )
            for seed in range(1 if setting.tiny else 3)
        ]  # fmt: skip
        accuracy = [run["metrics"]["accuracy"] for run in runs]
        figures[f"{engine} {kind}"] = {
            "accuracy": accuracy, "mean": statistics.mean(accuracy),
            "fold_accuracies": [run["folds"] for run in runs],
            "images_per_second": [run["metrics"]["images_per_second"] for run in runs],
            "wall_s": [run["wall_s"] for run in runs],
        }  # fmt: skip
        print(engine, kind, accuracy, figures[f"{engine} {kind}"]["images_per_second"], flush=True)
        (setting.out / "precision_so_far.json").write_text(json.dumps(figures, indent=1))
    return figures


def throughput(setting: Setting) -> dict[str, Any]:
    """Images a second while train.py trains, by engine, width and batch.

    Chips are copied until there are some thousands: an epoch of a few hundred is mostly validation.
    """
    if setting.chips and not setting.tiny:
        many = setting.work / "many"
        for copy in range(8):
            for region in (each for each in setting.chips.iterdir() if each.is_dir()):
                shutil.copytree(region, many / f"{region.name}{copy}")
        setting.chips = many
    figures = []
    grid = [(32, 8), (32, 32), (32, 256), (64, 8), (64, 256)]
    for width, batch in grid[:1] if setting.tiny else grid:
        for engine in ("graph", "eager"):
            if engine == "eager" and (width, batch) not in ((32, 8), (32, 256)):
                continue  # an epoch takes long
            epochs = 3 if engine == "graph" and not setting.tiny else 1
            small = ["model.width=8"] if setting.tiny else [f"model.width={width}"]
            run = trained(
                setting, "profile=none", "hardware.measure=false", *small, f"data.batch_size={batch}",
                f"trainer.engine={engine}", f"trainer.max_epochs={epochs}", "trainer.precision=bf16-mixed",
                f"data.folds={2 if engine == 'eager' else 5}",
            )  # fmt: skip
            rate = run["metrics"]["images_per_second"]
            print(
                f"width {width} batch {batch} {engine}: {rate:.0f} images/s, {run['wall_s']:.1f} s",
                flush=True,
            )
            figures.append({"width": width, "batch": batch, "engine": engine, "epochs": epochs, **run})
            (setting.out / "throughput_so_far.json").write_text(json.dumps(figures, indent=1))
    return {"runs": figures}


def latency(setting: Setting) -> dict[str, Any]:
    """Latency at batch 1 to 64, and where the time goes, of the published detector."""
    import torch

    from dxc.deploy.export import export_onnx
    from dxc.models.sppnet import SppNet

    torch.manual_seed(0)
    file = export_onnx(SppNet(4).eval(), setting.work / "sppnet.onnx", in_channels=4, size=100).path
    hardware = ["hardware=a5500"] if setting.device == "cuda" else ["hardware=cpu", "hardware.runtime=torch"]
    batches = "1,2" if setting.tiny else "1,2,4,8,16,32,64"
    table = setting.work / "latency.csv"
    done = subprocess.run(
        [sys.executable, "-m", "dxc.hardware", str(file), *hardware, "hardware.schedule=false",
         f"hardware.batches=[{batches}]", "--csv", str(table)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True, text=True,
    )  # fmt: skip
    print(done.stdout[-6000:], done.stderr[-3000:], flush=True)
    tables = {path.stem: path.read_text() for path in setting.work.glob("latency*.csv")}
    return {"status": done.returncode, "printed": done.stdout, "said": done.stderr, "tables": tables}


def schedule(setting: Setting) -> dict[str, Any]:
    """Operators side by side against one after the other; see scheduling.py."""
    import scheduling

    networks = scheduling.export_networks(setting.work, tiny=setting.tiny)
    table = scheduling.compare_networks(
        networks,
        setting.work / "schedules",
        batches=[1, 2] if setting.tiny else [1, 8, 64],
        precisions=["fp32"] if setting.tiny else ["fp32", "bf16"],
        device=setting.device,
        seconds=30 if setting.tiny else SECONDS["schedule"] - 20,
    )
    return {"table": table.to_csv(index=False)}


def search(setting: Setting) -> dict[str, Any]:
    """How long the published search would take here: steps of some networks are timed, the others are estimated."""
    import itertools

    import numpy as np
    import yaml
    from hydra import compose, initialize_config_dir

    import dxc.config.compose  # noqa: F401
    from dxc.config.plan import Plan
    from dxc.models.registry import NETWORKS, canonical_knobs
    from dxc.search.cost_estimate import interpolate, levels, spread_out
    from dxc.training.speed import seconds_per_image

    params = yaml.safe_load((ROOT / "conf" / "space" / "resnet18.yaml").read_text())
    params["data.batch_size"] = "8,16,32"
    keys = list(params)
    grid = [
        dict(zip(keys, values, strict=True))
        for values in itertools.product(*(str(v).split(",") for v in params.values()))
    ]
    distinct = {}
    for point in grid:  # twins differ in knobs without an effect
        model = {
            key.removeprefix("model."): value for key, value in point.items() if key.startswith("model.")
        }
        knobs = canonical_knobs({"_target_": NETWORKS["resnet"].target, **model})
        others = {key: value for key, value in point.items() if not key.startswith("model.")}
        distinct[tuple(sorted({**knobs, **others}.items()))] = point
    rows = list(distinct.values())
    features = levels([dict(key) for key in distinct])
    places = spread_out(features, 2 if setting.tiny else 24)
    training, validation = [], []
    began = time.perf_counter()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for place in places:
            point = [f"{key}={value}" for key, value in rows[place].items()]
            plan = Plan.of(compose("train", overrides=setting.overrides(*point)))
            pair = seconds_per_image(plan, budget_s=0.2)
            training.append(pair[0])
            validation.append(pair[1])
    chips, folds, epochs = 12_068, 5, 5
    each_training, error = interpolate(features, places, training)
    each_validation, _ = interpolate(features, places, validation)
    seconds = folds * epochs * chips * (each_training * (folds - 1) / folds + each_validation / folds)
    hours = float(seconds.sum()) / 3600
    print(
        f"{len(rows)} trials, all epochs: {hours:.2f} h; a tenth of the epochs: {hours / 10:.2f} h",
        flush=True,
    )
    timed = zip(places, training, validation, strict=True)
    return {
        "kind_of_hours": "predicted from measured steps", "trials": len(rows), "timed_networks": len(places),
        "median_error_of_estimate": float(np.median(error)), "hours_all_epochs": hours, "hours_tenth": hours / 10,
        "timed": [{**rows[place], "training_s": train_s, "validation_s": val_s} for place, train_s, val_s in timed],
        "timing_s": time.perf_counter() - began,
    }  # fmt: skip


def resnet50(setting: Setting) -> dict[str, Any]:
    """Images a second of ResNet-50 in bf16, channels_last, images made on the device: eager and as one graph."""
    import torch
    from torch.nn import functional as F
    from training_engines import captured, images_per_second

    from dxc.hardware.schedule.roofline import measure_peaks, training_step_s
    from dxc.models.resnet import BottleneckResNet

    torch.backends.cudnn.benchmark = True
    peaks, figures = measure_peaks(torch.device(setting.device), "bf16"), []
    size = 64 if setting.tiny else 224
    for batch in (2,) if setting.tiny else (64, 128, 256, 512):
        for graph in (False, True) if setting.device == "cuda" else (False,):
            model = BottleneckResNet(3, 1000).to(setting.device).to(memory_format=torch.channels_last)
            images = torch.rand(batch, 3, size, size, device=setting.device).to(
                memory_format=torch.channels_last
            )
            labels = torch.randint(0, 1000, (batch,), device=setting.device)
            optimizer = torch.optim.SGD(
                model.parameters(), lr=0.1, momentum=0.9, fused=setting.device == "cuda"
            )

            def step(
                model: Any = model, images: Any = images, labels: Any = labels, optimizer: Any = optimizer
            ) -> None:
                with torch.autocast(setting.device, torch.bfloat16):
                    loss = F.cross_entropy(model(images).float(), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

            rates = images_per_second(
                captured(step) if graph else step, batch, setting.device, 0.1 if setting.tiny else 2.0
            )
            floor = training_step_s(model, images.float(), peaks, "bf16")
            row = {
                "batch": batch, "graph": graph, "images_per_second": rates,
                "share_of_roofline": statistics.median(rates) * floor / batch,
            }  # fmt: skip
            print(row, flush=True)
            figures.append(row)
    return {"published_a100": 2470, "peaks": peaks._asdict(), "rates": figures}


def tests(setting: Setting) -> dict[str, Any]:
    """The tests that need a GPU."""
    marker = "gpu and not slow" if setting.device == "cuda" else "gpu and not gpu"
    files = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "mark.gpu" in path.read_text()
    )
    import pytest

    log = setting.out / "tests.log"  # what it says before its time is over
    os.chdir(ROOT)
    kept = os.dup(1)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        status = int(
            pytest.main(
                ["-v", "-p", "no:cacheprovider", "-m", marker, "--tb=short", "--durations=10", *files]
            )
        )
        sys.stdout.flush()
        os.dup2(kept, 1)
    print(log.read_text()[-6000:], flush=True)
    return {"status": status}


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    each.__name__: each
    for each in (
        environment, train, tests, engines, throughput, latency, schedule, determinism, precision, search, resnet50
    )
}  # fmt: skip


def run_part(name: str, arguments: argparse.Namespace) -> None:
    """Run one part here and write its figures."""
    os.setsid()  # so that what it starts can be ended with it
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(arguments.device, arguments.tiny, arguments.chips, Path(folder), arguments.out)
        began = time.perf_counter()
        figures = PARTS[name](setting)
    from dxc.hardware.spec import device_name

    device = device_name("gpu" if setting.device == "cuda" else "cpu")
    record = {
        "date": date.today().isoformat(), "device": device, "kind": "tiny" if setting.tiny else "measured",
        "seconds": round(time.perf_counter() - began, 1), **figures,
    }  # fmt: skip
    (arguments.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


FORK = multiprocessing.get_context("fork")
"""Parts begin with torch imported, which takes up to 20 s a process on some machines. No GPU may be in use before."""


def has_cuda() -> bool:
    """Whether torch finds a GPU. Another process asks, because one that has asked cannot be forked any more."""
    import torch

    asks = FORK.Process(target=lambda: sys.exit(not torch.cuda.is_available()))
    asks.start()
    asks.join()
    return asks.exitcode == 0


def run_parts(names: list[str], arguments: argparse.Namespace, limit_s: float) -> dict[str, int | None]:
    """Run parts beside each other, each in a process. Returns their exit status; None: stopped at the limit."""
    processes = {name: FORK.Process(target=run_part, args=(name, arguments)) for name in names}
    ended: dict[str, int | None] = {}
    try:
        until = time.perf_counter() + limit_s
        for process in processes.values():
            process.start()
        for name, process in processes.items():
            process.join(max(0.1, until - time.perf_counter()))
            ended[name] = process.exitcode
    finally:
        for process in processes.values():
            if process.is_alive() and process.pid:
                os.killpg(process.pid, signal.SIGKILL)
                process.join()
    return ended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that show only that a part runs")
    parser.add_argument("--chips", type=Path, help="a folder of chips")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--minutes", type=float, default=8, help="no part begins after this time")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    import dxc.pipeline.run  # noqa: F401  with torch; see FORK

    if arguments.device == "cuda" and not has_cuda():
        print("no CUDA device here: --tiny --device cpu tries the script on the processor", file=sys.stderr)
        return 2
    began, failed = time.perf_counter(), []
    together = [name for name in arguments.parts if name in UNTIMED]
    for names in (together, *([name] for name in arguments.parts if name not in UNTIMED)):
        left = arguments.minutes * 60 - (time.perf_counter() - began)
        if not names or left < 10:
            print("".join(f"{name}: left out, no time\n" for name in names), end="", flush=True)
            failed += names
            continue
        print(f"== {', '.join(names)}", flush=True)
        since = time.perf_counter()
        limit = 2000 if arguments.tiny else min(left, max(SECONDS[name] for name in names))
        for name, code in run_parts(names, arguments, limit).items():
            said = "done" if code == 0 else "stopped, no time" if code is None else f"failed ({code})"
            print(f"== {name}: {said}, {time.perf_counter() - since:.0f} s", flush=True)
            failed += [name] if code != 0 else []
    print(f"{len(arguments.parts) - len(failed)} of {len(arguments.parts)} parts done; {arguments.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
