"""Name, params and tags of a run, and the checks before it begins."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dxc.config.build import build
from dxc.config.compose import image_size
from dxc.config.identity import design_hash, params_and_tags, trial_hash
from dxc.config.names import data_name, describe
from dxc.errors import ConfigError, require_folder_name, require_whole
from dxc.models.registry import model_name
from dxc.pipeline.kept import check_limit
from dxc.training.build import build_task, check_task

if TYPE_CHECKING:
    from dxc.hardware.spec import Hardware


def heading(config: dict[str, Any], requested: dict[str, Any]) -> dict[str, Any]:
    """Name, params and tags of a run.

    Args:
        config: the resolved configuration, fitted to this machine.
        requested: the resolved configuration as requested. The identity comes from it, so that it is the same on every
            machine.
    """
    from dxc.hardware.spec import device_name

    params, settings = params_and_tags(config)
    return {
        "study": config["study"],
        "name": describe(config),
        "params": params,
        "artifacts": config["tracking"]["artifacts"],
        "tags": {
            **settings,
            "dxc.study": config["study"],
            "dxc.trial": trial_hash(requested),
            "dxc.design": design_hash(requested),
            "model": model_name(config["model"]),
            "data": data_name(config["data"]),
            "hardware": config["hardware"]["name"],
            "device": device_name(config["trainer"]["accelerator"]),
        },
    }


def check(config: dict[str, Any], hardware: Hardware) -> None:
    """Check the configuration before data is read or a run is recorded.

    Raises:
        ConfigError: values that cannot work together.
        HardwareError: hardware that is not available.
    """
    import torch

    from dxc.hardware.predict.packages import check_name
    from dxc.hardware.profiling.torch_profile import MODES

    require_whole("seed", config["seed"], at_least=0)
    require_folder_name("study", config["study"])
    task = build_task(config)
    check_task(config, task)
    task.model.check_input_size(image_size(config["data"]["size"]))  # type: ignore[operator]  # torch: tensor or module
    try:
        optimizer = build(config["optimizer"], "optimizer")([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer: {error}") from error
    if config["scheduler"] is not None:
        try:
            scheduler = build(config["scheduler"], "scheduler")(optimizer)
            watches = "metrics" in inspect.signature(scheduler.step).parameters  # ReduceLROnPlateau
            for _ in range(config["trainer"]["max_epochs"]):
                optimizer.step()
                scheduler.step(*([0.0] if watches else []))
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ConfigError(f"scheduler: {error}") from error
    build(config["trainer"], "trainer")
    check_limit(config["kept_gb"])
    if not isinstance(config["again"], bool):
        raise ConfigError(f"again must be true or false, not {config['again']!r}")
    if config["profile"] not in MODES:
        raise ConfigError(f"profile={config['profile']} is not one of {', '.join(MODES)}")
    for name in hardware.predictors:
        check_name(name, Path(hardware.packages_dir))
