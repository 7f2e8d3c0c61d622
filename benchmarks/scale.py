"""What the method of scale.py costs and how well it predicts, on processors.

    PYTHONPATH=. python benchmarks/scale.py                  about 8 minutes, alone on the machine
    PYTHONPATH=. python benchmarks/scale.py --network        as root: also a simulated network; 8 minutes more

1. Efficiency of two processes, beside that of a bare loop of torch's DistributedDataParallel with the same network,
   batch and images, in turn. The ratio of the two is to be 0.97 or more.
2. The prediction for four processes from runs with one and two, beside what four gave. On a machine of two cores four
   processes share them: the model cannot know that, so a second comparison has a pause in place of computation.
3. --network: the same with a pause, over namespaces that are joined at 100 Mbit/s; and bare all-reduces beside
   2 (N - 1) / N x bytes / bandwidth.
4. What the study itself takes for a run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from _record import save, spread

from dxc.scaling.launch import launch_here
from dxc.scaling.model import Fit, fit, ring
from dxc.scaling.results import Outcome
from tests.scaling.network import missing, network
from tests.scaling.runs import SMALL, result_of, written

NETWORK = {"_target_": "dxc.models.resnet.ResNet", "in_channels": 3, "num_classes": 10, "kernel": 3, "stride": 1,
           "padding": 1, "pool": "none", "width": 16, "blocks": 2}  # fmt: skip
BATCH, SIZE, SECONDS = 16, 32, 10.0
ABOUT = {**SMALL["about"], "classes": 10, "size": SIZE, "validation_images": 0}
MBIT = 100
PAUSE_MS = 250
TINY: dict[str, Any] = {
    "model": {"_target_": "dxc.models.resnet.TinyResNet", "in_channels": 3, "num_classes": 10, "width": 48},
    "about": {**ABOUT, "size": 16},
    "device_batch": 4,
}
"""Little computation, 2.8 MB of gradients: the pause stands for the rest."""

BARE = """
import json, sys, time
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from dxc.models.resnet import ResNet

total, batch, size = map(int, sys.argv[1:4])
seconds, path = float(sys.argv[4]), sys.argv[5]
torch.set_num_threads(1)
torch.manual_seed(0)
network = ResNet(3, num_classes=10, kernel=3, stride=1, padding=1, pool="none", width=16, blocks=2)
network = network.to(memory_format=torch.channels_last)
rank = 0
if total > 1:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    network = DistributedDataParallel(network)
optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

def step():
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))
    optimizer.zero_grad(set_to_none=True)
    cross_entropy(network(images), labels).backward()
    optimizer.step()

for _ in range(5):
    step()
if total > 1:
    dist.barrier()
began, steps = time.perf_counter(), 0
left = torch.ones(())
while left:
    step()
    steps += 1
    left = torch.tensor(float(time.perf_counter() - began < seconds))
    if total > 1:
        dist.broadcast(left, 0)
if rank == 0:
    open(path, "w").write(json.dumps(total * batch * steps / (time.perf_counter() - began)))
if total > 1:
    dist.barrier()
    dist.destroy_process_group()
"""


def bare(total: int, folder: Path) -> float:
    """Images/s of the bare loop."""
    path = folder / "bare.json"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", BARE, *map(str, (total, BATCH, SIZE, SECONDS, path))]
    own = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(total),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [subprocess.Popen(command, env={**os.environ, **own, "RANK": str(n)}) for n in range(total)]
    codes = [each.wait() for each in ranks]
    if any(codes):
        raise SystemExit("the bare loop failed")
    return float(path.read_text())


def ours(total: int, folder: Path, *, mbit: float | None = None, **more: Any) -> Outcome:
    """One run as scale.py does it; over a simulated network where `mbit` is given."""
    shape = {"nodes": total, "devices": 1} if mbit else {"nodes": 1, "devices": total}
    asked = {
        "device_batch": BATCH, "model": NETWORK, "about": ABOUT, "seconds": SECONDS, "channels_last": True,
        "learning_rate": 0.01, "warmup_steps": 5, **more,
    }  # fmt: skip
    written(folder, **shape, **asked)
    with network(total, mbit) if mbit and total > 1 else contextlib.nullcontext() as joined:
        if joined is None:
            launch_here(folder)
        else:
            launch_here(folder, environment=joined.environment, prefixes=joined.prefixes)
    result = result_of(folder)
    known = {name: result[name] for name in Outcome.__dataclass_fields__ if result.get(name) is not None}
    return Outcome(scaling="weak", **shape, device_batch=asked["device_batch"], **known)


def predicted(found: Fit | None, four: Outcome, title: str) -> dict[str, float]:
    """Print and return the prediction for four processes beside what they gave."""
    assert found is not None
    guess = found.predict(4, "weak", four.device_batch)
    measured = four.images_per_second / found.one_device["weak", four.device_batch]
    inside = "inside" if guess.low <= measured <= guess.high else "outside"
    print(
        f"{title}: predicted {guess.speedup:.2f} ({guess.low:.2f} to {guess.high:.2f}), measured {measured:.2f}: "
        f"{inside} the bounds, {guess.speedup / measured - 1:+.1%}",
        flush=True,
    )
    return {"predicted": guess.speedup, "low": guess.low, "high": guess.high, "measured": measured}


def beside_bare(root: Path, repeats: int) -> dict[str, Any]:
    """One and two processes of dxc and of the bare loop, in turn: a machine's speed changes."""
    rates: dict[str, list[float]] = {"dxc 1": [], "dxc 2": [], "bare 1": [], "bare 2": []}
    for _ in range(repeats):
        for total in (1, 2):
            rates[f"dxc {total}"].append(ours(total, root / f"own{total}", measured_s=0).images_per_second)
            rates[f"bare {total}"].append(bare(total, root))
    for kind, values in rates.items():
        print(f"{kind} process(es): {spread(values, 1)} images/s")
    ratios = {
        f"ratio_{n}": statistics.median(rates[f"dxc {n}"]) / statistics.median(rates[f"bare {n}"])
        for n in (1, 2)
    }
    efficiencies = {
        kind: statistics.median(rates[f"{kind} 2"]) / statistics.median(rates[f"{kind} 1"]) / 2
        for kind in ("dxc", "bare")
    }
    print(f"efficiency of two: dxc {efficiencies['dxc']:.3f}, bare {efficiencies['bare']:.3f}")
    print(
        f"images/s beside the bare loop: {ratios['ratio_1']:.3f} with one process, {ratios['ratio_2']:.3f} with two"
    )
    return {"rates": rates, **ratios, "efficiencies": efficiencies}


def four_from_two(root: Path) -> dict[str, Any]:
    """The prediction for four processes from one and two, beside what four gave: shared cores, and a pause."""
    runs = {n: ours(n, root / f"m{n}") for n in (1, 2, 4)}
    shared = predicted(fit([runs[1], runs[2]]), runs[4], f"4 processes on {os.cpu_count()} cores, speed-up")
    runs = {n: ours(n, root / f"p{n}", simulated_step_ms=PAUSE_MS, **TINY) for n in (1, 2, 4)}
    title = f"4 processes with a pause of {PAUSE_MS} ms in a step, speed-up"
    return {"shared_cores": shared, "pause": predicted(fit([runs[1], runs[2]]), runs[4], title)}


def over_a_network(root: Path) -> dict[str, Any]:
    """One, two and four namespaces that are joined at MBIT, with a pause in place of computation."""
    if lacks := missing():
        raise SystemExit(lacks)
    runs = {n: ours(n, root / f"n{n}", mbit=MBIT, simulated_step_ms=PAUSE_MS, **TINY) for n in (1, 2, 4)}
    figures: dict[str, Any] = {}
    for total in (2, 4):
        run = runs[total]
        size, seconds, _ = run.reduced[-1]
        theory = ring(total)[0] * size * 8 / MBIT / 1e6
        share = theory / (run.compute_s + theory)
        print(
            f"all-reduce of {size / 1e6:.1f} MB over {total} at {MBIT} Mbit/s: {1e3 * seconds:.0f} ms, bytes / "
            f"bandwidth {1e3 * theory:.0f} ms, {seconds / theory - 1:+.1%}; share of communication "
            f"{run.communication_share:.3f}, by the step times {share:.3f}",
            flush=True,
        )
        figures[f"all_reduce_{total}"] = {
            "bytes": size, "seconds": seconds, "theory_s": theory, "share": run.communication_share,
            "theory_share": share,
        }  # fmt: skip
    title = f"4 nodes at {MBIT} Mbit/s with a pause of {PAUSE_MS} ms, speed-up"
    return {**figures, "network": predicted(fit([runs[1], runs[2]]), runs[4], title)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--network", action="store_true", help="also over a simulated network; needs root")
    parser.add_argument("--only", choices=["bare", "four", "network", "study"], help="one part")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/scale.json")
    arguments = parser.parse_args()
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "bare": partial(beside_bare, repeats=arguments.repeats),
        "four": four_from_two,
        "network": over_a_network,
        "study": bookkeeping,
    }
    if arguments.only:
        parts = {arguments.only: parts[arguments.only]}
    elif not arguments.network:
        del parts["network"]
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="dxc-scale-") as name:
        for part in parts.values():
            figures |= part(Path(name))
    if arguments.save:
        save("scale", figures)


def bookkeeping(root: Path) -> dict[str, Any]:
    """Seconds that a study takes for a run beyond the run itself, MLflow's database included."""
    from hydra import compose, initialize_config_dir

    from dxc.config.compose import PROJECT_ROOT, resolved
    from dxc.scaling.settings import Settings
    from dxc.scaling.study import scale

    asked = [
        f"cache_dir={root}/cache", f"out={root}/reports", f"tracking.uri=sqlite:///{root}/runs.db", "devices='1,2'",
        "accelerator=cpu", "model=resnet8", "source.classes=4", "data.size=16", "minutes=0.02", "measured_seconds=0.2",
    ]  # fmt: skip
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        settings = Settings.of(resolved(compose("scale", asked)))
    began = time.perf_counter()
    trials = scale(settings).trials
    whole_s = time.perf_counter() - began
    each = statistics.mean(trial.bookkeeping_s for trial in trials)
    print(
        f"the study's own work: {each:.2f} s a run; {whole_s:.0f} s for a study of two short runs, report included"
    )
    return {"bookkeeping_s": each}


if __name__ == "__main__":
    main()
