"""What Lightning costs: the task in its trainer against a bare PyTorch loop.

    python benchmarks/training.py           about 4 minutes on 4 cores

Images a second while training, for batches of 8, 16 and 32: the same network from the same initial weights,
the same tensors, Adam 1e-3. The loops train one epoch in turn, several times; the bare one once in PyTorch's
default memory order (what one would write first) and once in channels_last (dxc's default).
"""

from __future__ import annotations

import argparse
import functools
import time

import numpy as np
import pytorch_lightning as pl
import torch
from _record import save, spread
from torch import nn
from torch.utils.data import DataLoader, Dataset

from dxc.data.cache import usable_cores
from dxc.models.resnet import ResNet
from dxc.tasks.classification import ClassificationTask
from dxc.tasks.trainer import FoldTrainer

CHANNELS, SIZE = 7, 100


class Chips(Dataset):
    """Random chips in memory, served as the datamodule serves them: a batch a look-up."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(count, CHANNELS, SIZE, SIZE, generator=generator)
        self.labels = torch.randint(0, 2, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, positions: list[int]) -> dict[str, torch.Tensor]:
        index = torch.tensor(positions)
        return {"image": self.images[index], "label": self.labels[index], "index": index}


def lightning_loop(chips: Chips, batch: int, device: str) -> float:
    """Images a second of the LightningModule in FoldTrainer, one epoch."""
    pl.seed_everything(0, verbose=False)
    task = ClassificationTask(ResNet(CHANNELS), functools.partial(torch.optim.Adam, lr=1e-3))
    loader = DataLoader(chips, batch_size=batch, shuffle=True, collate_fn=lambda whole: whole)
    accelerator = "gpu" if device == "cuda" else "cpu"
    trainer = FoldTrainer(
        max_epochs=1, accelerator=accelerator, devices=1, progress=False, limit_val_batches=0
    )
    trainer.fit(task, loader)
    return trainer.trained_images / trainer.train_seconds


def bare_loop(chips: Chips, batch: int, device: str, *, channels_last: bool) -> float:
    """Images a second of a plain loop, one epoch."""
    pl.seed_everything(0, verbose=False)
    model = ResNet(CHANNELS).to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer, loss = torch.optim.Adam(model.parameters(), lr=1e-3), nn.CrossEntropyLoss()
    model.train()
    started = time.perf_counter()
    for index in torch.randperm(len(chips)).split(batch):
        optimizer.zero_grad()
        loss(model(chips.images[index].to(device)), chips.labels[index].to(device)).backward()
        optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return len(chips) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--chips", type=int, default=320)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of torch, on the CPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/training_DEVICE.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chips = Chips(arguments.chips)
    lightning_loop(chips, 32, arguments.device)  # warm-up: first-time initialisation of the libraries
    figures: dict = {"chips": arguments.chips, "torch_threads": arguments.threads, "batches": {}}
    for batch in arguments.batches:
        rates: dict[str, list[float]] = {"dxc": [], "bare": [], "bare_channels_last": []}
        for _ in range(arguments.repeats):
            rates["dxc"].append(lightning_loop(chips, batch, arguments.device))
            rates["bare"].append(bare_loop(chips, batch, arguments.device, channels_last=False))
            rates["bare_channels_last"].append(bare_loop(chips, batch, arguments.device, channels_last=True))
        ratio, ratio_last = (
            list(np.array(rates["dxc"]) / np.array(rates[name])) for name in ("bare", "bare_channels_last")
        )
        print(
            f"batch {batch}: {spread(rates['dxc'], 0)} images/s; {spread(ratio)} times a bare loop's "
            f"{spread(rates['bare'], 0)}, {spread(ratio_last)} times the same in channels_last"
        )
        figures["batches"][str(batch)] = rates | {"ratio": ratio, "ratio_channels_last": ratio_last}
    if arguments.save:
        save(f"training_{arguments.device}", figures)


if __name__ == "__main__":
    main()
