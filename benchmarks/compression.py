"""Compression: the published grid beside ours, beside narrow networks, and what the chain of stages saves.

    python benchmarks/compression.py --width 0.25           CIFAR-10 is fetched; about 2 hours of a core, width 1 ten
    python benchmarks/compression.py --root FOLDER          CIFAR-10 from a folder or an archive
    python benchmarks/compression.py --tiny                 drawn shapes instead of CIFAR-10, about a minute
    python benchmarks/compression.py --parts table          only what is tracked already, nothing is trained

Parts, in this order:
    grid      the designs of experiment=edge_milestones and the network before pruning. Those that the store has are
              taken from it, the others are run. An interrupted one goes on.
    narrow    for each fraction a narrow network of as many parameters as the pruned one, trained from the beginning for
              as many epochs as the pruned one in all. Pruning has to beat it.
    stages    seconds that it takes to prune, export and quantise a network; latency of the files, which take turns.
              Weights do not matter for that: they are random.
    overhead  the seconds and trainings of the grid as one sweep, and of each design alone. With --tiny both are run;
              else the second is predicted: what the design itself did, and the training of the networks that it is
              built on, which it would have to repeat.
--save writes compression.json, and compression.md with the tables, into benchmarks/results/.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from _record import RESULTS, ROOT, save
from hydra import compose, initialize_config_dir

import dxc.config.compose  # noqa: F401  registers the resolvers that conf/ uses
from dxc.config.plan import Plan
from dxc.errors import TrackingError
from dxc.files import write_atomically
from dxc.hardware.measure.latency import StopRule, measure
from dxc.hardware.spec import device_name
from dxc.pipeline.run import run

if TYPE_CHECKING:
    from torch import nn

PUBLISHED = {
    0.05: (77.34, 77.49),
    0.25: (72.67, 72.58),
    0.5: (63.99, 64.08),
    0.75: (46.88, 47.08),
    0.9: (37.27, 37.34),
}
"""Accuracy in % of float32 and of dynamic uint8 after 5 epochs of fine-tuning, by fraction. Published (student work,
not reviewed): github.com/rishabhpar/deepcompression, old/rounded_table1_m1.csv and old/rounded_table2_m2.csv."""
PUBLISHED_BEST = (0.84, 75.64)
"""The best design there: fraction, and accuracy in % as static int8 after 100 epochs."""
PUBLISHED_EPOCHS = 5
LEAST_BASE = 0.77
MOST_DROP = 0.005
"""Largest loss of accuracy that static int8 may have."""
LEARNT = 0.15
"""Of ten classes. A narrow network below this has learnt nothing."""
LEAST_SAVING = 5.0
"""How many times less the sweep is to take than its designs alone."""
KINDS = ("none", "dynamic", "static")
TITLES = {"none": "float32", "dynamic": "dynamic uint8", "static": "static int8"}
SIZE, CHANNELS, CLASSES = 32, 3, 10
PARTS = ("grid", "narrow", "stages", "overhead")
SHOWN = ("accuracy", "accuracy_drop", "params", "macs", "onnx_mb", "fit_seconds")
"""Metrics of a design that are saved."""


class Design(NamedTuple):
    """One run of the grid."""

    fraction: float
    epochs: int
    quantise: str

    @property
    def overrides(self) -> list[str]:
        return [
            f"compress.fraction={self.fraction:g}", f"compress.finetune_epochs={self.epochs}",
            f"compress.quantise={self.quantise}",
        ]  # fmt: skip


@dataclass
class Setting:
    """What the parts are told. `images` names the images wherever a figure of them stands."""

    root: str | None
    width: float
    tiny: bool
    store: str
    cache: Path
    work: Path
    images: str
    train: bool = True
    names: tuple[str, ...] = field(default=("edge_milestones", "edge_milestones_narrow"))

    def plan(self, *more: str) -> Plan:
        """The plan of a design of experiment=edge_milestones."""
        given = [
            f"model.width={self.width:g}",
            f"cache_dir={self.cache}",
            f"tracking.uri={self.store}",
            *more,
        ]
        if self.root:
            given.append(f"source.root={self.root}")
        if self.tiny:
            given += [
                "source=synthetic_images", "source.images=600", "trainer.max_epochs=1",
                "compress.calibration_images=20", "progress=false",
            ]  # fmt: skip
        return Plan.of(composed(*given))

    def grid(self) -> list[Design]:
        """The designs of the experiment: the network itself, those that are fine-tuned longest, then the others.

        Its axes are read from the experiment. --tiny takes one fraction and two numbers of epochs.
        """
        axes = {
            name.rpartition(".")[2]: values
            for name, values in composed(hydra=True).hydra.sweeper.params.items()
        }
        fractions, epochs = (
            [float(each) for each in str(axes[k]).split(",")] for k in ("fraction", "finetune_epochs")
        )
        if self.tiny:
            fractions, epochs = [0.5], [0, 1]
        pruned = itertools.product(
            sorted(epochs, key=lambda n: (n < max(epochs), n)), fractions, str(axes["quantise"]).split(",")
        )
        return [
            *(Design(0, 0, kind) for kind in KINDS),
            *(Design(fraction, int(number), kind) for number, fraction, kind in pruned),
        ]


def composed(*overrides: str, hydra: bool = False) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        given = ["experiment=edge_milestones", *overrides]
        return compose("train", overrides=given, return_hydra_config=hydra)


# --- tracked runs ----------------------------------------------------------------------------------------------------


def tracked(setting: Setting, study: str) -> dict[str, dict[str, Any]]:
    """The finished runs of a study, by identity of the trial; none where there is no such study."""
    from dxc.analysis.runs import read_runs

    try:
        frame = read_runs(setting.store, [study], cache_dir=setting.cache).frame
    except TrackingError:
        return {}
    return {row["dxc.trial"]: row for row in frame.to_dict("records")} if len(frame) else {}


def made(setting: Setting, study: str, plans: Sequence[Plan]) -> Iterator[dict[str, Any] | None]:
    """The tracked run of each plan; it is run where there is none, or None where nothing is to be trained."""
    known = tracked(setting, study)
    for number, plan in enumerate(plans, 1):
        if plan.trial not in known and setting.train:
            print(f"{study}: {number} of {len(plans)}: {plan.name}", flush=True)
            with tempfile.TemporaryDirectory(dir=setting.work) as folder:
                run(plan, Path(folder) / "artifacts")
            known = tracked(setting, study)
        yield known.get(plan.trial)


def figures_of(row: dict[str, Any]) -> dict[str, Any]:
    """Metrics of a run that are there."""
    return {name: row[name] for name in SHOWN if name in row and not math.isnan(row[name])}


def duration_s(row: dict[str, Any]) -> float:
    return float((row["end_time"] - row["start_time"]).total_seconds())


def stages_of(row: dict[str, Any]) -> dict[str, str]:
    """Identity of each stage, by name."""
    return dict(each.split(":") for each in row["dxc.stages"].split())


# --- parts -----------------------------------------------------------------------------------------------------------


def grid(setting: Setting) -> dict[str, Any]:
    """The published grid: a row for each design that is tracked."""
    designs = setting.grid()
    study = setting.names[0]
    plans = [setting.plan(f"study={study}", *design.overrides) for design in designs]
    runs = list(made(setting, study, plans))
    rows = [
        {**design._asdict(), **figures_of(row)}
        for design, row in zip(designs, runs, strict=True)
        if row is not None
    ]
    epochs = plans[0].trainer.max_epochs
    return {"base_epochs": epochs, "missing": len(designs) - len(rows), "designs": rows}


def network(width: float, fraction: float = 0.0, align: int = 1) -> nn.Module:
    """An untrained MobileNet-v1, pruned."""
    from dxc.compress.prune import pruned
    from dxc.models.mobilenet import MobileNetV1

    whole = MobileNetV1(CHANNELS, CLASSES, width=width, stride=1).eval()
    if not fraction:
        return whole
    return pruned(whole, fraction, align=align, image_size=SIZE)


def params(width: float, fraction: float = 0.0) -> int:
    from dxc.deploy.export import count_params

    return count_params(network(width, fraction))


def narrow_width(target: int, count: Callable[[float], int] = params, *, steps: int = 1024) -> float:
    """The width multiplier whose network has as nearly as possible so many parameters.

    The widest layer has 1024 channels, so widths between two multiples of 1/1024 give the network of the lower one.
    Parameters grow with the width: the place is found by halving.

    Args:
        target: number of parameters.
        count: width -> number of parameters.
        steps: widths are multiples of 1/steps.
    """
    low, high = math.ceil(steps / 32), steps  # the narrowest has one channel in the stem
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle / steps) <= target else (low, middle)
    return min((low, high), key=lambda k: abs(count(k / steps) - target)) / steps


def narrow(setting: Setting) -> dict[str, Any]:
    """Networks as small as the pruned ones, trained from the beginning for as many epochs in all."""
    study = setting.names[1]
    designs = setting.grid()
    most = max(design.epochs for design in designs)
    epochs = setting.plan().trainer.max_epochs + most
    fractions = sorted({design.fraction for design in designs} - {0.0}, reverse=True)  # the quickest first
    targets = {fraction: params(setting.width, fraction) for fraction in fractions}
    widths = {fraction: narrow_width(target) for fraction, target in targets.items()}
    plans = [
        setting.plan(f"study={study}", f"model.width={widths[f]:g}", f"trainer.max_epochs={epochs}")
        for f in fractions
    ]
    rows = []
    for fraction, row in zip(fractions, made(setting, study, plans), strict=True):
        if row is not None:
            about = {"fraction": fraction, "width": widths[fraction], "pruned_params": targets[fraction]}
            rows.append({**about, "epochs": epochs, **figures_of(row)})
    rows.sort(key=lambda each: each["fraction"])
    return {"missing": len(fractions) - len(rows), "designs": rows}


def stages(setting: Setting) -> dict[str, Any]:
    """Seconds of pruning, exporting and quantising; latency of the files, in rounds in which each has its turn."""
    import torch

    from dxc.compress.quantise import quantise
    from dxc.deploy.export import export_onnx
    from dxc.hardware.onnx_file import onnx_mb

    torch.manual_seed(0)
    fractions = [0.0, *sorted({design.fraction for design in setting.grid()} - {0.0})]
    widths = [setting.width] if setting.tiny else sorted({setting.width, 1.0})
    cases = [(w, f, 1) for w in widths for f in fractions]
    if not setting.tiny:
        cases += [(max(widths), f, 8) for f in fractions if f]  # channels in multiples of 8
    rounds, stop = (1, StopRule(0, 0, 3, 3, 0)) if setting.tiny else (2, StopRule(max_seconds=0.5))
    images = (
        np.random.default_rng(0)
        .normal(size=(20 if setting.tiny else 200, CHANNELS, SIZE, SIZE))
        .astype("float32")
    )
    rows: list[dict[str, Any]] = []
    files: list[Path] = []
    with tempfile.TemporaryDirectory(dir=setting.work) as name:
        for number, (width, fraction, align) in enumerate(cases):
            float32 = Path(name) / f"{number}-none.onnx"
            started = time.process_time()
            model = network(width, fraction, align)
            seconds = {"prune": time.process_time() - started}
            started = time.process_time()
            export_onnx(model, float32, in_channels=CHANNELS, size=SIZE)
            seconds["export"] = time.process_time() - started
            for kind in KINDS:
                file = float32.with_name(f"{number}-{kind}.onnx")
                if kind != "none":
                    started = time.process_time()
                    quantise(float32, file, kind, images if kind == "static" else None)
                    seconds[kind] = time.process_time() - started
                about = {"width": width, "fraction": fraction, "align": align, "quantise": kind}
                rows.append({**about, "onnx_mb": onnx_mb(file), "latencies_ms": []})
                files.append(file)
            rows[-1]["cpu_seconds"] = (
                seconds if fraction else {k: v for k, v in seconds.items() if k != "prune"}
            )
        for _ in range(rounds):
            for row, file in zip(rows, files, strict=True):
                found = measure(file, stop=stop, attempts=1)
                row["latencies_ms"].append(found.median_ms)
    for row in rows:
        row["latency_ms"] = min(row["latencies_ms"])
    return {
        "device": device_name(),
        "note": "random weights; CPU seconds of the whole process; latency: the least of the medians of the rounds, "
        "because other work on the machine only adds to it",
        "rounds": rounds,
        "files": rows,
    }


def counted(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """How often each stage was done in a sweep, and would be if each design were alone."""
    names = ("train", "prune", "finetune", "quantise")
    found = [(name, stages_of(row)[name]) for row in rows for name in names if name in stages_of(row)]
    return {
        "sweep": {name: len({each for each in found if each[0] == name}) for name in names},
        "alone": {name: sum(each[0] == name for each in found) for name in names},
    }


def overhead(setting: Setting) -> dict[str, Any]:
    """Seconds and trainings of the pruned designs as one sweep, and of each alone."""
    if setting.tiny:
        return overhead_measured(setting)
    designs = setting.grid()
    known = tracked(setting, setting.names[0])
    plans = [setting.plan(f"study={setting.names[0]}", *design.overrides) for design in designs]
    rows = [known[plan.trial] for plan in plans if plan.trial in known]
    return {"kind": "predicted", **predicted(rows)}


def predicted(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of a sweep, and of its pruned designs alone.

    The training time of a run (fit_seconds) includes that of the networks that it is built on. A run in the sweep
    trained only what no earlier one had. So a design alone takes what its run took, without what it trained, and
    fit_seconds.
    What it would prune, judge and quantise again is not added: the saving is at least this.

    Args:
        rows: tracked runs, the network before pruning too.
    """
    base = {
        stages_of(row)["train"]: float(row["fit_seconds"]) for row in rows if "prune" not in stages_of(row)
    }
    seconds_of = dict(base)  # of what is trained, by identity of the stage
    seen: set[str] = set()
    own: list[float] = []
    alone: list[float] = []
    pruned: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda each: each["start_time"]):
        stages = stages_of(row)
        trained = [stages[name] for name in ("train", "finetune") if name in stages]
        if "finetune" in stages and stages["train"] in base:
            seconds_of[stages["finetune"]] = float(row["fit_seconds"]) - base[stages["train"]]
        new = sum(seconds_of.get(each, 0.0) for each in trained if each not in seen)
        seen.update(trained)
        if "prune" in stages:
            pruned.append(row)
            own.append(max(0.0, duration_s(row) - new))
            alone.append(own[-1] + float(row["fit_seconds"]))
    trained_once = {stages_of(row).get(name) for row in pruned for name in ("train", "finetune")} - {None}
    sweep_s = sum(own) + sum(seconds_of.get(str(each), 0.0) for each in trained_once)
    return {
        "designs": len(pruned), "sweep_s": sweep_s, "alone_s": sum(alone), "times_less": sum(alone) / sweep_s,
        "counted": counted(pruned),
    }  # fmt: skip


def overhead_measured(setting: Setting) -> dict[str, Any]:
    """The designs in one cache, then each in a cache of its own; both are run."""
    designs = [design for design in setting.grid() if design.fraction]
    seconds, rows = {}, []
    for way in ("sweep", "alone"):
        started = time.perf_counter()
        for number, design in enumerate(designs):
            with tempfile.TemporaryDirectory(dir=setting.work) as folder:
                name = "sweep" if way == "sweep" else f"alone{number}"
                cache = setting.work / "overhead" / name
                plan = setting.plan(f"study=overhead_{way}", *design.overrides, f"cache_dir={cache}")
                run(plan, Path(folder) / "artifacts")
        seconds[way] = time.perf_counter() - started
        rows = list(tracked(setting, f"overhead_{way}").values())
    return {
        "kind": "measured", "designs": len(designs), "sweep_s": seconds["sweep"], "alone_s": seconds["alone"],
        "times_less": seconds["alone"] / seconds["sweep"], "counted": counted(rows),
    }  # fmt: skip


# --- tables and bars -------------------------------------------------------------------------------------------------


def of(designs: Sequence[dict[str, Any]], fraction: float, epochs: int, kind: str) -> dict[str, Any] | None:
    """The row of a design."""
    wanted = Design(fraction, epochs, kind)
    return next((d for d in designs if Design(d["fraction"], d["epochs"], d["quantise"]) == wanted), None)


def published_params(fraction: float) -> int:
    """Parameters of the published network after pruning, counted."""
    return params(1.0, fraction)


def bars(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What compression has to reach, and what it reached: name, bar, value, met."""
    lines: list[dict[str, Any]] = []

    def add(name: str, bar: float, value: float, unit: str, *, most: bool = False) -> None:
        met = value <= bar if most else value >= bar
        lines.append({"name": name, "bar": bar, "value": value, "unit": unit, "met": met})

    designs = found.get("grid", {}).get("designs", [])
    if base := of(designs, 0, 0, "none"):
        add("accuracy before pruning", 100 * LEAST_BASE, 100 * base["accuracy"], "%")
    for fraction, accuracies in PUBLISHED.items():
        for kind, accuracy in zip(("none", "dynamic"), accuracies, strict=True):
            if row := of(designs, fraction, PUBLISHED_EPOCHS, kind):
                name = f"{TITLES[kind]}, {100 * fraction:g} % pruned, {PUBLISHED_EPOCHS} epochs"
                add(name, accuracy, 100 * row["accuracy"], "%")
    if drops := [
        d["accuracy_drop"] for d in designs if d["quantise"] == "static" and d["epochs"] + (not d["fraction"])
    ]:
        add(
            f"static int8, greatest loss of {len(drops)} trained designs",
            100 * MOST_DROP,
            100 * max(drops),
            "points",
            most=True,
        )
    entries = {**{f: a[0] for f, a in PUBLISHED.items()}, PUBLISHED_BEST[0]: PUBLISHED_BEST[1]}
    for fraction, accuracy in entries.items() if designs else ():
        size = published_params(fraction)
        if small := [d["accuracy"] for d in designs if d["params"] <= size]:
            name = f"front at the {size:,} parameters of the published {100 * fraction:g} %"
            add(name, accuracy, 100 * max(small), "%")
    for row in found.get("narrow", {}).get("designs", []):
        if row["accuracy"] < LEARNT:
            continue  # it is no baseline
        longest = max(d["epochs"] for d in designs) if designs else 0
        if pruned := of(designs, row["fraction"], longest, "none"):
            name = f"{100 * row['fraction']:g} % pruned against a narrow network ({row['params']:,.0f} parameters)"
            add(name, 100 * row["accuracy"], 100 * pruned["accuracy"], "%")
    if saved := found.get("overhead"):
        name = f"{saved['designs']} designs in one sweep against each alone ({saved['kind']})"
        add(name, LEAST_SAVING, saved["times_less"], "times less")
    return lines


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def percent(row: dict[str, Any] | None) -> str:
    return f"{100 * row['accuracy']:.2f}" if row else "-"


def report(found: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    text = [f"{found['images']}; MobileNet-v1, width {found['width']:g}; {device_name()}.\n"]
    designs = found.get("grid", {}).get("designs", [])
    alone = {row["fraction"]: row for row in found.get("narrow", {}).get("designs", [])}
    fast = {
        (row["fraction"], row["quantise"]): row["latency_ms"]
        for row in found.get("stages", {}).get("files", [])
        if row["width"] == found["width"] and row["align"] == 1
    }
    if designs:
        epochs = sorted({design["epochs"] for design in designs})
        header = [
            "pruned", "parameters", *(f"{each} epochs %" for each in epochs), "published %", "dynamic uint8 %",
            "published %", "static int8 %", "narrow %", "narrow parameters",
        ]  # fmt: skip
        rows = []
        for fraction in sorted({design["fraction"] for design in designs}):
            own = [design for design in designs if design["fraction"] == fraction]
            last = max(design["epochs"] for design in own)
            published = PUBLISHED.get(fraction)
            beside = alone.get(fraction)
            rows.append(
                [
                    f"{100 * fraction:g} %", f"{own[0]['params']:,.0f}",
                    *(percent(of(own, fraction, each, "none")) for each in epochs),
                    f"{published[0]}" if published else "-", percent(of(own, fraction, last, "dynamic")),
                    f"{published[1]}" if published else "-", percent(of(own, fraction, last, "static")),
                    percent(beside), f"{beside['params']:,.0f}" if beside else "-",
                ]
            )  # fmt: skip
        text.append("Accuracy after fine-tuning; quantised: after the most epochs.\n\n" + table(header, rows))
        rows = [
            [
                f"{100 * row['fraction']:g} %", str(row["epochs"]) if row["fraction"] else "-", TITLES[row["quantise"]],
                percent(row), f"{100 * row['accuracy_drop']:.2f}" if "accuracy_drop" in row else "-",
                f"{row['onnx_mb']:.3f}", f"{row['macs'] / 1e6:.2f}",
                f"{fast[key]:.3f}" if (key := (row["fraction"], row["quantise"])) in fast else "-",
            ]
            for row in sorted(designs, key=lambda d: (d["fraction"], d["epochs"], KINDS.index(d["quantise"])))
        ]  # fmt: skip
        header = [
            "pruned",
            "epochs",
            "numbers",
            "accuracy %",
            "lost, points",
            "MB",
            "million MACs",
            "latency ms",
        ]
        text.append("Every design.\n\n" + table(header, rows))
    if files := found.get("stages", {}).get("files"):
        each = {(r["width"], r["fraction"], r["align"], r["quantise"]): r for r in files}
        rows = [
            [
                f"{width:g}", f"{100 * fraction:g} %", str(align),
                *(f"{each[width, fraction, align, kind]['latency_ms']:.3f}" for kind in KINDS),
                *(f"{each[width, fraction, align, kind]['onnx_mb']:.2f}" for kind in KINDS),
                *(
                    f"{seconds[name]:.2f}" if name in (seconds := each[width, fraction, align, "static"]["cpu_seconds"])
                    else "-"
                    for name in ("prune", "export", "dynamic", "static")
                ),
            ]
            for width, fraction, align in dict.fromkeys(key[:3] for key in each)
        ]  # fmt: skip
        names = ("float32", "dynamic", "static")
        header = [
            "width", "pruned", "aligned to", *(f"{n} ms" for n in names), *(f"{n} MB" for n in names),
            "prune s", "export s", "dynamic s", "static s",
        ]  # fmt: skip
        text.append(
            "Latency of one image, ONNX Runtime, one thread; CPU seconds of the stages.\n\n"
            + table(header, rows)
        )
    if saved := found.get("overhead"):
        ways = [
            [way, f"{saved[f'{way}_s']:,.0f}", *(str(n) for n in saved["counted"][way].values())]
            for way in ("sweep", "alone")
        ]
        header = [f"{saved['designs']} designs ({saved['kind']})", "seconds", *saved["counted"]["sweep"]]
        text.append(f"{saved['times_less']:.1f} times less.\n\n" + table(header, ways))
    if found["bars"]:
        rows = [
            [b["name"], f"{b['bar']:.2f}", f"{b['value']:.2f}", b["unit"], "met" if b["met"] else "missed"]
            for b in found["bars"]
        ]
        text.append("Bars.\n\n" + table(["what", "bar", "here", "", ""], rows))
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--root", help="CIFAR-10: the binary archive, or a folder with its files; without: fetched"
    )
    parser.add_argument("--images", default="CIFAR-10", help="what the images are, for the tables")
    parser.add_argument("--width", type=float, default=0.25, help="width multiplier of the network")
    parser.add_argument("--tiny", action="store_true", help="drawn shapes and few designs, to try the script")
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, "table"), default=list(PARTS))
    parser.add_argument(
        "--work", type=Path, default=ROOT / "outputs" / "compression", help="folder for all it keeps"
    )
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/compression.json and .md"
    )
    parser.add_argument("--out", type=Path, help="write the tables into this file")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        root=None if arguments.tiny else arguments.root,
        width=arguments.width,
        tiny=arguments.tiny,
        store=f"sqlite:///{work}/mlflow.db",
        cache=work / "cache",
        work=work,
        images="drawn shapes (source=synthetic_images)" if arguments.tiny else arguments.images,
        train="table" not in arguments.parts,
    )
    parts = {"grid": grid, "narrow": narrow, "stages": stages, "overhead": overhead}
    if not setting.train:  # what the store has; --tiny would run the sweep and the designs alone again
        arguments.parts += ["grid", "narrow"] if setting.tiny else ["grid", "narrow", "overhead"]
    wanted = [part for part in PARTS if part in arguments.parts]
    found: dict[str, Any] = {"images": setting.images, "width": setting.width}
    for part in wanted:
        found[part] = parts[part](setting)
    found["bars"] = [] if setting.tiny else bars(found)
    text = report(found)
    print(text)
    if arguments.save or arguments.out:
        folder = arguments.out or RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        save("compression", found, folder)
        write_atomically(folder / "compression.md", text)


if __name__ == "__main__":
    main()
