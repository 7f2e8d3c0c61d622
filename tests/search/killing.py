"""A search in a process that kills itself in mid-work: python -m tests.search.killing LOG AT CHIPS FOLDER OVERRIDE...

LOG gets a line when a piece of work begins and one when it has ended: 'begun finetuned fold2'. A piece is one fold that
is trained, fine-tuned, pruned or quantised. The process dies by SIGKILL in the piece with the number AT, from 1, when
its result is there and is not kept yet; AT=0 lets it live. CHIPS, FOLDER and the overrides are those of Searching.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from dxc.pipeline import chain, networks
from dxc.training import crossval
from tests.search.searches import Searching


def watch(log: Path, kill_at: int) -> None:
    """Log the work of this process from now on, and kill it in the piece with this number."""
    begun = 0

    def watched(module: Any, function: str, what: str) -> None:
        work = getattr(module, function)

        def wrapper(plan: Any, datamodule: Any, fold: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal begun
            begun += 1
            number, name = begun, f"{'finetuned' if kwargs.get('start') else what} {fold.name}"
            _say(log, f"begun {name}")
            result = work(plan, datamodule, fold, *args, **kwargs)
            if number == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            _say(log, f"ended {name}")
            return result

        setattr(module, function, wrapper)

    watched(crossval, "train_fold", "trained")
    watched(networks, "validated_fold", "pruned")
    watched(chain, "validated_fold", "quantised")


def _say(log: Path, line: str) -> None:
    with log.open("a") as file:
        file.write(f"{line}\n")


if __name__ == "__main__":
    log_file, at, chips, folder, *overrides = sys.argv[1:]
    torch.set_num_threads(1)  # as in the tests
    watch(Path(log_file), int(at))
    Searching(Path(chips), Path(folder))(*overrides)
