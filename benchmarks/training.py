"""Times Lightning: the task in its trainer against a bare PyTorch loop.

    python benchmarks/training.py                           about 6 minutes on 4 cores
    python benchmarks/training.py --model sppnet            the detector of experiment=sppnet_original, batch 20
    python benchmarks/training.py --precisions bf16-mixed   what trainer.precision=auto decides against, or for

It gives images per second in training for batches of 8, 16 and 32, of dxc in fp32 and in what trainer.precision=auto
chooses here. All have the same network, initial weights and tensors, and Adam at 1e-3 (the detector SGD at 0.005). They
take turns and train one epoch each, several times. The bare loop is in fp32. It runs in PyTorch's default memory order,
which one would write first, and in channels_last, dxc's default.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from _record import save, spread
from hydra import compose, initialize_config_dir
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from dxc.config.compose import PROJECT_ROOT
from dxc.config.plan import Plan
from dxc.data.cache import usable_cores
from dxc.hardware.spec import device_name
from dxc.models.resnet import ResNet
from dxc.models.sppnet import SppNet
from dxc.training.classification import ClassificationTask
from dxc.training.detection import DetectionTask
from dxc.training.precision import AUTO, FULL, choose_precision
from dxc.training.trainer import FoldTrainer

CHANNELS, SIZE = 7, 100


@dataclass(frozen=True)
class Kind:
    """A kind of network, with the loss of the plain loop: loss(output, batch) -> scalar."""

    model: Callable[[], nn.Module]
    task: Callable[..., pl.LightningModule]
    optimizer: Callable[..., torch.optim.Optimizer]
    loss: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]
    batches: list[int]


def detection_loss(output: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The simplest loss: cross entropy of presence, and smooth L1 of the existing boxes."""
    label = batch["label"]
    loss = F.binary_cross_entropy_with_logits(output.presence, label.float())
    there = label == 1
    if there.any():
        box = F.smooth_l1_loss(output.box[there], batch["boxes"][there, 0], beta=1 / 9, reduction="sum")
        loss = loss + box / there.sum()
    return loss


KINDS = {
    "resnet18": Kind(
        lambda: ResNet(CHANNELS), ClassificationTask, functools.partial(torch.optim.Adam, lr=1e-3),
        lambda output, batch: F.cross_entropy(output, batch["label"]), [8, 16, 32],
    ),
    "sppnet": Kind(
        lambda: SppNet(CHANNELS), DetectionTask,
        functools.partial(torch.optim.SGD, lr=5e-3, momentum=0.9, weight_decay=5e-4), detection_loss, [20],
    ),
}  # fmt: skip


class Chips(Dataset):
    """Random chips in memory. Like the datamodule, it reads a whole batch at once."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(count, CHANNELS, SIZE, SIZE, generator=generator)
        self.labels = torch.randint(0, 2, (count,), generator=generator)
        self.boxes = torch.where(
            self.labels[:, None, None] == 1, torch.full((count, 1, 4), 0.4), float("nan")
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, positions: list[int]) -> dict[str, torch.Tensor]:
        index = torch.tensor(positions)
        return {
            "image": self.images[index], "label": self.labels[index], "boxes": self.boxes[index], "index": index,
        }  # fmt: skip


def chosen_precision(asked: str, model: str, batch: int, device: str) -> str:
    """What a training with trainer.precision=ASKED runs in: other than `asked` only for auto."""
    overrides = [
        f"model={model}", "data=7ch", f"data.size={SIZE}", f"data.batch_size={batch}", f"trainer.precision={asked}",
        f"trainer.accelerator={device}",
    ]  # fmt: skip
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        plan = Plan.of(compose("train", overrides=overrides))
    return str(choose_precision(plan, device_name(device)).trainer.precision)


def lightning_loop(kind: Kind, chips: Chips, batch: int, device: str, precision: Any) -> float:
    """Images a second of the LightningModule in FoldTrainer, one epoch."""
    pl.seed_everything(0, verbose=False)
    task = kind.task(kind.model(), kind.optimizer)
    loader = DataLoader(chips, batch_size=batch, shuffle=True, collate_fn=lambda whole: whole)
    accelerator = "gpu" if device == "cuda" else "cpu"
    trainer = FoldTrainer(
        max_epochs=1,
        accelerator=accelerator,
        devices=1,
        precision=precision,
        progress=False,
        limit_val_batches=0,
    )
    trainer.fit(task, loader)
    return trainer.trained_images / trainer.train_seconds


def bare_loop(kind: Kind, chips: Chips, batch: int, device: str, *, channels_last: bool) -> float:
    """Images a second of a plain loop, one epoch."""
    pl.seed_everything(0, verbose=False)
    model = kind.model().to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = kind.optimizer(model.parameters())
    model.train()
    started = time.perf_counter()
    for index in torch.randperm(len(chips)).split(batch):
        optimizer.zero_grad()
        part = {key: value.to(device) for key, value in chips.__getitems__(index.tolist()).items()}
        kind.loss(model(part["image"]), part).backward()
        optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return len(chips) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--chips", type=int, default=320)
    parser.add_argument("--model", choices=list(KINDS), default="resnet18")
    parser.add_argument("--batches", type=int, nargs="+", help="default: those of the published protocol")
    parser.add_argument(
        "--precisions",
        nargs="+",
        default=[FULL, AUTO],
        help="of dxc, as trainer.precision; default: 32-true auto",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of torch, on the CPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/training_[sppnet_]DEVICE.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chips = Chips(arguments.chips)
    kind = KINDS[arguments.model]
    lightning_loop(
        kind, chips, 32, arguments.device, FULL
    )  # warm-up: first-time initialisation of the libraries
    figures: dict = {"chips": arguments.chips, "torch_threads": arguments.threads, "batches": {}}
    for batch in arguments.batches or kind.batches:
        chosen = {
            asked: chosen_precision(asked, arguments.model, batch, arguments.device)
            for asked in arguments.precisions
        }
        dxc: dict[str, list[float]] = {asked: [] for asked in chosen}
        bare: dict[str, list[float]] = {"bare": [], "bare_channels_last": []}
        for _ in range(arguments.repeats):
            for asked, precision in chosen.items():
                dxc[asked].append(lightning_loop(kind, chips, batch, arguments.device, precision))
            for name, channels_last in (("bare", False), ("bare_channels_last", True)):
                bare[name].append(
                    bare_loop(kind, chips, batch, arguments.device, channels_last=channels_last)
                )
        figures["batches"][str(batch)] = {**bare, "dxc": {}}
        for asked, rates in dxc.items():
            ratio, ratio_last = (list(np.array(rates) / np.array(each)) for each in bare.values())
            print(
                f"batch {batch}, {asked} ({chosen[asked]}): {spread(rates, 0)} images/s; {spread(ratio)} times a bare "
                f"loop's {spread(bare['bare'], 0)}, {spread(ratio_last)} times the same in channels_last"
            )
            figures["batches"][str(batch)]["dxc"][asked] = {
                "trained_in": chosen[asked],
                "rates": rates,
                "ratio": ratio,
                "ratio_channels_last": ratio_last,
            }
    if arguments.save:
        of = "" if arguments.model == "resnet18" else f"{arguments.model}_"
        save(f"training_{of}{arguments.device}", figures)


if __name__ == "__main__":
    main()
