"""What only a GPU can show, in independent parts (make gpu).

    make gpu                                                   under 8 minutes on one GPU, into benchmarks/results/gpu/
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
import os
import platform
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
    "environment": 30, "engines": 150, "train": 90, "determinism": 60, "precision": 90, "latency": 60,
    "schedule": 90, "search": 60, "resnet50": 40, "tests": 90,
}  # fmt: skip
"""Time limit of each part, in the order in which they run."""


class Setting:
    """What the parts are told: device (cuda or cpu), tiny, chips (a folder, or None)."""

    def __init__(self, device: str, tiny: bool, chips: Path | None, work: Path) -> None:
        self.device, self.tiny, self.chips, self.work = device, tiny, chips, work

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
    from training_engines import peaks

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
    return found | {"peaks": peaks(setting.device, tiny=setting.tiny)}


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
    options = ("profile=none", "hardware.measure=false", "again=true", "data.folds=2", "trainer.max_epochs=2")
    figures = {}
    for engine in ("graph", "eager"):
        both = [trained(setting, *options, f"trainer.engine={engine}") for _ in range(2)]
        figures[engine] = {"equal": both[0]["folds"] == both[1]["folds"], "runs": both}
    return figures


def precision(setting: Setting) -> dict[str, Any]:
    """Accuracy of the engines and precisions over seeds: they agree within the spread of seeds."""
    figures: dict[str, Any] = {}
    for engine, kind in (
        ("graph", "bf16-mixed"),
        ("eager", "bf16-mixed"),
        ("graph", "32-true"),
        ("eager", "32-true"),
    ):
        runs = [
            trained(
                setting, "profile=none", "hardware.measure=false", f"seed={100 * seed}", "study=precision",
                f"trainer.engine={engine}", f"trainer.precision={kind}",
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
    return figures


def exported(setting: Setting, name: str) -> Path:
    """A network of conf/experiment or a class, untrained, as an .onnx file."""
    import torch

    from dxc.deploy.export import export_onnx
    from dxc.models.resnet import ResNet
    from dxc.models.sppnet import SppNet

    torch.manual_seed(0)
    model = {
        "resnet18": lambda: ResNet(7, width=32),
        "resnet18_64": lambda: ResNet(7, width=64),
        "sppnet": lambda: SppNet(4),
    }[name]()
    path = setting.work / f"{name}.onnx"
    in_channels = 4 if name == "sppnet" else 7
    export_onnx(model.eval(), path, in_channels=in_channels, size=100)
    return path


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    each.__name__: each for each in (environment, engines, train, determinism, precision)
}


def run_part(name: str, setting: Setting, out: Path) -> None:
    """Run one part here and write its figures."""
    began = time.perf_counter()
    figures = PARTS[name](setting)
    from dxc.hardware.spec import device_name

    device = device_name("gpu" if setting.device == "cuda" else "cpu")
    record = {
        "date": date.today().isoformat(), "device": device, "kind": "tiny" if setting.tiny else "measured",
        "seconds": round(time.perf_counter() - began, 1), **figures,
    }  # fmt: skip
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that show only that a part runs")
    parser.add_argument("--chips", type=Path, help="a folder of chips")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--minutes", type=float, default=8, help="no part begins after this time")
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # the part that this process runs
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.inside:
        with tempfile.TemporaryDirectory() as folder:
            setting = Setting(arguments.device, arguments.tiny, arguments.chips, Path(folder))
            run_part(arguments.inside, setting, arguments.out)
        return 0

    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: --tiny --device cpu tries the script on the processor", file=sys.stderr)
        return 2
    began, failed = time.perf_counter(), []
    for name in arguments.parts:
        left = arguments.minutes * 60 - (time.perf_counter() - began)
        limit = SECONDS[name] * (20 if arguments.tiny else 1)
        if left < 10:
            print(f"{name}: left out, no time", flush=True)
            continue
        print(f"== {name}", flush=True)
        since = time.perf_counter()
        options = ["--tiny"] if arguments.tiny else []
        options += ["--chips", str(arguments.chips)] if arguments.chips else []
        process = subprocess.Popen(
            [
                sys.executable,
                __file__,
                "--inside",
                name,
                "--device",
                arguments.device,
                "--out",
                str(arguments.out),
                *options,
            ],
            start_new_session=True,
        )
        try:
            code = process.wait(min(limit, left) if not arguments.tiny else limit)
            said = "done" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            code, said = 1, f"stopped after its {limit} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        if code:
            failed.append(name)
        print(f"== {name}: {said}, {time.perf_counter() - since:.0f} s", flush=True)
    print(f"{len(arguments.parts) - len(failed)} of {len(arguments.parts)} parts done; {arguments.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
