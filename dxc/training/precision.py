"""Chooses the number format of a training where the configuration says trainer.precision=auto.

`auto` asks for the fastest format that trains to the same accuracy. That is bf16 in mixed precision where the device
computes it natively and is faster with it, otherwise fp32. A GPU says whether it can. A processor must say so too
(/proc/cpuinfo), because emulated bf16 is several times slower than fp32. Then a few steps of this network are timed in
both formats. The times are kept in cache_dir/precision, in one file for each machine and shape of network.

The identity of a training is what was asked for, not what was chosen. So a study, its resumed trials and its kept folds
are the same on every machine. Machines that share a cache share the folds of `auto`, also where one of them trains in
bf16 and another in fp32: the accuracies differ as those of two seeds do. The tag dxc.precision says what trained the
folds of a run. Where the format itself is the question, name it: trainer.precision=32-true and
trainer.precision=bf16-mixed are two identities.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Any

from dxc.config.checked import Part, checked, must_be
from dxc.config.identity import canonical, digest
from dxc.config.plan import Plan
from dxc.errors import DxcError, is_number
from dxc.files import write_atomically
from dxc.training.build import is_first_process
from dxc.training.speed import seconds_per_image
from dxc.untrusted import load_json

log = logging.getLogger(__name__)

AUTO, FULL, MIXED = "auto", "32-true", "bf16-mixed"
FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""What Linux calls native bf16 in /proc/cpuinfo: two extensions of x86, and that of aarch64."""
CPUINFO = Path("/proc/cpuinfo")
CLEARLY_FASTER = 1.1  # repeated timings of one network differ by a few percent
TIMED_S = 0.4  # each of four measurements, after a step that allocates memory
FOLDER = "precision"
CHOSEN = "DXC_PRECISION"
"""Environment variable with the chosen precision, for the processes that Lightning starts for further devices. All must
train in the same one, and each would time for itself."""

Seconds = Annotated[
    int | float,
    must_be(lambda value: is_number(value) and 0 < value < float("inf"), "a number of seconds over 0"),
]


class StepTimes(Part):
    """Seconds per image in training, as kept on disk. device: where they were measured, for a reader."""

    device: str
    fp32_s: Seconds
    bf16_s: Seconds

    @property
    def gain(self) -> float:
        """How many times as fast as fp32 bf16 is."""
        return self.fp32_s / self.bf16_s


def choose_precision(plan: Plan, device: str) -> Plan:
    """Replace trainer.precision=auto by what trains this network here; the log says which and why.

    Args:
        plan: fitted to this machine (dxc.training.build.fit_to_machine).
        device: name of the device that trains.
    """
    if str(plan.trainer.precision) != AUTO:
        return plan
    if not is_first_process() and CHOSEN in os.environ:
        return plan.with_trainer(precision=os.environ[CHOSEN])
    precision, reason = _chosen(plan, device)
    log.info("trains in %s, %s", precision, reason)
    os.environ[CHOSEN] = precision
    return plan.with_trainer(precision=precision)


def _chosen(plan: Plan, device: str) -> tuple[str, str]:
    import torch

    if plan.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return MIXED, "which this GPU computes natively"
        return FULL, "because this GPU does not compute bf16 natively"
    if plan.trainer.accelerator != "cpu":
        return (
            FULL,
            f"because bf16 is not known to be faster on trainer.accelerator={plan.trainer.accelerator}",
        )
    if not native_bf16():
        return FULL, "because this processor does not compute bf16 natively"
    try:
        times = _step_times(plan, device)
    except (DxcError, RuntimeError, ValueError, TypeError) as error:
        # a network that cannot make a step is refused with reasons before it is trained, or fails there
        return FULL, f"because no step could be timed ({type(error).__name__})"
    if times.gain >= CLEARLY_FASTER:
        return MIXED, f"{times.gain:.2f} times as fast as fp32 with this network"
    return FULL, f"because bf16 is only {times.gain:.2f} times as fast with this network"


def native_bf16(cpuinfo: Path | None = None) -> bool:
    """Whether the processor computes bf16 natively, as Linux describes it; False where nothing says so.

    Args:
        cpuinfo: the description; None: that of this machine.
    """
    try:
        lines = (cpuinfo or CPUINFO).read_text(errors="replace").splitlines()
    except OSError:
        return False
    flags = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return any(FLAGS & set(each) for each in flags)


def _step_times(plan: Plan, device: str) -> StepTimes:
    """Times of this network in both formats, from the cache if they are there."""
    path = Path(plan.cache_dir) / FOLDER / f"{digest(_shape(plan, device))}.json"
    try:
        return checked(StepTimes, load_json(path))
    except FileNotFoundError:
        pass
    except (DxcError, OSError, ValueError) as error:
        log.warning("%s cannot be used and is measured anew: %s", path, error)
    log.info("timing a few training steps in fp32 and in bf16")
    fp32_s, bf16_s = (
        seconds_per_image(plan.with_trainer(precision=each), budget_s=TIMED_S)[0] for each in (FULL, MIXED)
    )
    times = StepTimes(device=device, fp32_s=fp32_s, bf16_s=bf16_s)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, times.model_dump_json(indent=2) + "\n")
    except OSError as error:
        log.warning("cache_dir: the times of training steps cannot be kept: %s", error)
    return times


def _shape(plan: Plan, device: str) -> dict[str, Any]:
    """What the times of a step depend on."""
    import torch

    whole = canonical(plan.values())
    return {
        "device": device,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "channels_last": plan.trainer.channels_last,
        "batch": plan.data.batch_size,
        "size": plan.data.image_size,
        **{section: whole[section] for section in ("model", "task", "optimizer") if section in whole},
    }
