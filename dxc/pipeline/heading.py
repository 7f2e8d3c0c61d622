"""Name, params and tags of a run, and the checks before it begins."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dxc.config.identity import params_and_tags
from dxc.config.plan import Plan
from dxc.errors import ConfigError
from dxc.training.build import build_task, check_task

if TYPE_CHECKING:
    from torch import nn

    from dxc.tracking.run import Sink


def heading(plan: Plan, requested: Plan) -> dict[str, Any]:
    """Name, params and tags of a run.

    Args:
        plan: fitted to this machine.
        requested: the plan as requested. Identity and params come from it, so that they are the same on every machine.
    """
    from dxc.hardware.spec import device_name

    params, settings = params_and_tags(requested.values())
    return {
        "study": plan.study,
        "name": plan.name,
        "params": params,
        "artifacts": plan.tracking.artifacts,
        "tags": {
            **settings,
            "dxc.study": plan.study,
            "dxc.trial": requested.trial,
            "dxc.design": requested.design,
            "model": plan.model.name,
            "data": plan.data.name,
            "hardware": plan.hardware.name,
            "dxc.source": plan.source.build().title,
            "device": device_name(plan.trainer.accelerator),
            "dxc.precision": str(plan.trainer.precision),
        },
    }


def record_chips(tracked: Sink, plan: Plan, chips: str) -> None:
    """Record what a run is trained on.

    Args:
        tracked: the run.
        plan: as requested.
        chips: hash of the chips.
    """
    tracked.tag({"dxc.data": chips})
    tracked.log_dataset(plan.source.build().title, chips, plan.source.values())


def _check_compression(plan: Plan, model: nn.Module) -> None:
    """Raise ConfigError or CompressionError where a network cannot be compressed as the plan says.

    Args:
        plan: with the section compress.
        model: the network, which need not be trained.
    """
    compress = plan.compress
    if compress.quantises and isinstance(plan.data.size, str):
        raise ConfigError(
            f"compress.quantise={compress.quantise} needs images of one size, because its file is made for one: set "
            "data.size=PIXELS, or compress.quantise=none"
        )
    if not compress.prunes:
        return
    devices = plan.trainer.devices
    if not (devices in (1, "1", "auto") or (isinstance(devices, list) and len(devices) == 1)):
        raise ConfigError(
            f"trainer.devices={devices}: pruning and fine-tuning work on one device; leave out trainer.devices or "
            "compress.fraction"
        )
    from dxc.compress.prune import pruned

    pruned(model, compress.fraction, align=compress.align, image_size=plan.data.image_size)


def check(plan: Plan) -> None:
    """Check what single values cannot tell, and whether there are chips, before they are read or a run is recorded.

    Raises:
        ConfigError: values that cannot work together, or that a constructor refuses.
        DataError: there are no chips where they should be.
        HardwareError: hardware that is not available.
    """
    import torch

    from dxc.hardware.predict.packages import check_name

    plan.source.build().check()
    task = build_task(plan)
    check_task(plan, task)
    _check_compression(plan, task.model)
    task.model.check_input_size(plan.data.image_size)  # type: ignore[operator]  # torch: tensor or module
    try:
        optimizer = plan.optimizer.build()([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer: {error}") from error
    if plan.scheduler is not None:
        try:
            scheduler = plan.scheduler.build()(optimizer)
            watches = "metrics" in inspect.signature(scheduler.step).parameters  # ReduceLROnPlateau
            for _ in range(plan.trainer.max_epochs):
                optimizer.step()
                scheduler.step(*([0.0] if watches else []))
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ConfigError(f"scheduler: {error}") from error
    plan.trainer.build()
    for name in plan.hardware.predictors:
        check_name(name, Path(plan.hardware.packages_dir))
