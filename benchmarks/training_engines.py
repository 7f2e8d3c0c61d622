"""Compares ways to train on a GPU: images a second of each, for the same network, batch and data.

    python benchmarks/training_engines.py                      about 3 minutes on a GPU
    python benchmarks/training_engines.py --tiny --device cpu  the same code in seconds, where there is no GPU

plain          fp32, a DataLoader in the same process, each batch copied to the device: as the published code trains
eager          images resident on the device, channels_last, bf16 autocast, fused Adam
graph          the same step as one CUDA graph
streams        one such graph a fold, five folds side by side on streams of their own
one_graph      the steps of five folds in one graph, each on a stream of its own
grouped        five folds as one network with grouped convolutions, as one graph
vmap           five folds as one network by torch.func.vmap, bf16 weights, no running statistics
compile        the eager step with torch.compile, its backward included, as one graph

All count the images of all folds. A share of the roofline is the least time that the arithmetic and the memory traffic
of the convolutions take at the peaks measured in the same run, over the time taken (see training_step_s).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dxc.hardware.schedule.roofline import measure_peaks, training_step_s
from dxc.models.resnet import ResNet

CHANNELS, SIZE, FOLDS = 7, 100, 5
VARIANTS = ("plain", "eager", "graph", "streams", "one_graph", "grouped", "vmap", "compile")


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Resident:
    """Images and labels that lie on the device, as fp16 and int64. count: images."""

    def __init__(self, count: int, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(count, CHANNELS, SIZE, SIZE, generator=generator).half().to(device)
        self.images = self.images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(0, 2, (count,), generator=generator).to(device)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def adam(parameters: Any, device: str) -> torch.optim.Optimizer:
    cuda = device == "cuda"
    return torch.optim.Adam(parameters, lr=1e-3, fused=cuda, capturable=cuda)


class Fold:
    """One network with its optimizer and the index of its next batch."""

    def __init__(self, width: int, batch: int, data: Resident, device: str) -> None:
        self.model: Any = ResNet(CHANNELS, width=width).to(device).to(memory_format=torch.channels_last)
        self.optimizer = adam(self.model.parameters(), device)
        self.index = torch.arange(batch, device=device) % len(data.labels)
        self.data, self.device = data, device

    def step(self) -> None:
        images, labels = self.data.batch(self.index)
        with torch.autocast(self.device, torch.bfloat16):
            loss = F.cross_entropy(self.model(images).float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


class GroupedFolds(nn.Module):
    """Several ResNets as one: their channels side by side, every convolution in groups, one a network.

    (B, folds x C, H, W) -> (B, folds, classes).
    """

    def __init__(self, model: nn.Module, folds: int) -> None:
        super().__init__()
        self.folds = folds
        self.model = copy.deepcopy(model)
        for parent in list(self.model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Conv2d):
                    wide: nn.Module = nn.Conv2d(
                        child.in_channels * folds, child.out_channels * folds, child.kernel_size,
                        child.stride, child.padding, groups=folds, bias=child.bias is not None,
                    )  # fmt: skip
                elif isinstance(child, nn.BatchNorm2d):
                    wide = nn.BatchNorm2d(child.num_features * folds)
                elif isinstance(child, nn.Linear):
                    wide = nn.Conv2d(child.in_features * folds, child.out_features * folds, 1, groups=folds)
                else:
                    continue
                setattr(parent, name, wide)
        self.model.fc, self.head = nn.Identity(), self.model.fc

    def forward(self, images: Tensor) -> Tensor:
        features = self.model(images)[:, :, None, None]
        return self.head(features).flatten(1).unflatten(1, (self.folds, -1))


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """A step as one CUDA graph; the warm-up runs on a stream of its own, as torch asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def plain(width: int, batch: int, data: Resident, device: str) -> Callable[[], None]:
    """A step of the plain loop. Its DataLoader goes round and round."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(len(data.labels), CHANNELS, SIZE, SIZE, generator=generator)
    loader = DataLoader(
        TensorDataset(images, data.labels.cpu()), batch_size=batch, shuffle=True, drop_last=True
    )
    model = ResNet(CHANNELS, width=width).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def batches() -> Any:
        while True:
            yield from loader

    endless = batches()

    def step() -> None:
        images, labels = next(endless)
        loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def streams(folds: list[Fold], device: str) -> Callable[[], None]:
    if device != "cuda":
        return lambda: [fold.step() for fold in folds] and None
    replays = [captured(fold.step) for fold in folds]
    lanes = [torch.cuda.Stream() for _ in folds]

    def step() -> None:
        for lane, replay in zip(lanes, replays, strict=True):
            with torch.cuda.stream(lane):
                replay()

    return step


def one_graph(folds: list[Fold], device: str) -> Callable[[], None]:
    if device != "cuda":
        return streams(folds, device)
    lanes = [torch.cuda.Stream() for _ in folds]

    def step() -> None:
        here = torch.cuda.current_stream()
        for lane, fold in zip(lanes, folds, strict=True):
            lane.wait_stream(here)
            with torch.cuda.stream(lane):
                fold.step()
        for lane in lanes:
            here.wait_stream(lane)

    return captured(step)


def grouped(width: int, batch: int, data: Resident, device: str) -> Callable[[], None]:
    model: Any = GroupedFolds(ResNet(CHANNELS, width=width), FOLDS).to(device)
    model = model.to(memory_format=torch.channels_last)
    optimizer = adam(model.parameters(), device)
    index = torch.arange(batch, device=device) % len(data.labels)

    def step() -> None:
        images, labels = data.batch(index)
        with torch.autocast(device, torch.bfloat16):
            scores = model(images.repeat(1, FOLDS, 1, 1).contiguous(memory_format=torch.channels_last))
        # the sum over networks of their mean losses
        loss = F.cross_entropy(scores.float().flatten(0, 1), labels.repeat_interleave(FOLDS)) * FOLDS
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return captured(step) if device == "cuda" else step


def vmapped(width: int, batch: int, data: Resident, device: str) -> Callable[[], None]:
    models = [ResNet(CHANNELS, width=width).to(device).bfloat16() for _ in range(FOLDS)]
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # vmap cannot write statistics in place
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
    weights, _ = torch.func.stack_module_state(models)  # type: ignore[arg-type]
    base = copy.deepcopy(models[0]).to("meta")
    optimizer = adam(list(weights.values()), device)
    index = torch.arange(batch, device=device) % len(data.labels)

    def step() -> None:
        images, labels = data.batch(index)
        images = images.bfloat16()

        def loss_of(own: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(base, own, (images,)).float(), labels)

        loss = torch.vmap(loss_of)(weights).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return captured(step) if device == "cuda" else step


def compiled(width: int, batch: int, data: Resident, device: str) -> Callable[[], None]:
    fold = Fold(width, batch, data, device)
    fold.model = torch.compile(fold.model)
    return captured(fold.step) if device == "cuda" else fold.step


def variant(name: str, width: int, batch: int, data: Resident, device: str) -> tuple[Callable[[], None], int]:
    """A step of the variant, and how many images it takes."""

    def folds(count: int) -> list[Fold]:
        return [Fold(width, batch, data, device) for _ in range(count)]

    if name == "plain":
        return plain(width, batch, data, device), batch
    if name == "eager":
        return folds(1)[0].step, batch
    if name == "graph":
        return (captured(folds(1)[0].step) if device == "cuda" else folds(1)[0].step), batch
    if name == "compile":
        return compiled(width, batch, data, device), batch
    several = {
        "streams": lambda: streams(folds(FOLDS), device),
        "one_graph": lambda: one_graph(folds(FOLDS), device),
        "grouped": lambda: grouped(width, batch, data, device),
        "vmap": lambda: vmapped(width, batch, data, device),
    }
    return several[name](), FOLDS * batch


def images_per_second(step: Callable[[], None], images: int, device: str, seconds: float) -> list[float]:
    """Rates of three stretches of `seconds` / 3 each, after a warm-up."""
    for _ in range(5):
        step()
    synchronize(device)
    rates = []
    for _ in range(3):
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < seconds / 3:
            for _ in range(10 if device == "cuda" else 1):
                step()
            steps += 10 if device == "cuda" else 1
            if steps % 50 == 0 or device != "cuda":
                synchronize(device)  # the queue must not run ahead of the clock
        synchronize(device)
        rates.append(images * steps / (time.perf_counter() - started))
    return rates


def compare(
    device: str, chosen: list[tuple[int, int, tuple[str, ...]]], seconds: float, *, tiny: bool
) -> dict:
    """Rates of (width, batch, variants). A variant that fails says why, and the others go on."""
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
    data = Resident(16 if tiny else 2048, device)
    peaks = measure_peaks(torch.device(device), "bf16")
    print(f"peaks: {peaks.flops / 1e12:.0f} TFLOP/s bf16, {peaks.bandwidth / 1e12:.2f} TB/s", flush=True)
    figures: dict[str, Any] = {"peaks": peaks._asdict(), "rates": []}
    for width, batch, names in chosen:
        floor = None
        with contextlib.suppress(RuntimeError):
            image = torch.rand(batch, CHANNELS, SIZE, SIZE, device=device)
            floor = training_step_s(ResNet(CHANNELS, width=width).to(device), image, peaks, "bf16")
        for name in names:
            row: dict[str, Any] = {"width": width, "batch": batch, "variant": name}
            began = time.perf_counter()
            try:
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                torch.manual_seed(0)
                step, images = variant(name, width, batch, data, device)
                step()
                synchronize(device)
                row["until_first_step_s"] = time.perf_counter() - began
                rates = images_per_second(step, images, device, seconds)
                row |= {"images_per_second": rates, "median": statistics.median(rates)}
                if floor:
                    row["share_of_roofline"] = statistics.median(rates) * floor / batch
                if device == "cuda":
                    row["peak_memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
                print(
                    f"width {width} batch {batch:3} {name:10} {row['median']:9.0f} images/s  "
                    f"{row.get('share_of_roofline', 0):5.1%} of the roofline  "
                    f"first step after {row['until_first_step_s']:.1f} s",
                    flush=True,
                )
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"[:500]
                print(f"width {width} batch {batch:3} {name:10} {row['error'][:160]}", flush=True)
            figures["rates"].append(row)
            step = None  # type: ignore[assignment]
            if device == "cuda":
                with contextlib.suppress(RuntimeError):
                    torch.cuda.empty_cache()
    return figures


def grid(*, tiny: bool) -> list[tuple[int, int, tuple[str, ...]]]:
    """What is compared: (width, batch, variants)."""
    if tiny:  # without compile, which takes minutes on a processor
        return [(8, 2, VARIANTS[:-1])]
    main_ones = ("plain", "eager", "graph", "streams", "one_graph")
    return [
        (32, 8, (*main_ones, "grouped")),
        (32, 32, (*main_ones, "grouped", "vmap")),
        (32, 256, (*main_ones, "grouped")),
        (64, 8, main_ones),
        (64, 32, main_ones),
        (64, 256, main_ones),
        (32, 32, ("compile",)),  # last: it may take a minute until its first step
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--seconds", type=float, default=0.9, help="a variant")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, help="write the figures to this file, as JSON")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    chosen = [
        (width, batch, tuple(name for name in names if name in arguments.only))
        for width, batch, names in grid(tiny=arguments.tiny)
    ]
    figures = compare(
        arguments.device, chosen, 0.03 if arguments.tiny else arguments.seconds, tiny=arguments.tiny
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
