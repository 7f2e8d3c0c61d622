"""Short names of a configuration and its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dxc.models.registry import short_label


def quote_texts(arguments: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Quote the values of some keys in a command line. Hydra would read a condition such as `accuracy > 0.9` as its own
    grammar.

    Args:
        arguments: the command line.
        keys: keys whose values are quoted.
    """
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in keys and value not in ("", "null"):
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            argument = f'{key}="{escaped}"'
        quoted.append(argument)
    return quoted


def flatten(cfg: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'model': {'kernel': 3}} -> {'model.kernel': 3}; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def describe(cfg: dict[str, Any]) -> str:
    """A configuration in one line, for run names: 'resnet18 k3 s2 p1 w32, 7ch b16', 'sppnet k3 l4 f1024, 7ch b16', and
    where it is compressed 'resnet18 k3 s2 p1 w32, 7ch b16, 0.5 pruned e5, static'."""
    parts = [
        short_label(cfg["model"]),
        f"{data_name(cfg['data'])} b{cfg['data']['batch_size']}",
        *compression_names(cfg.get("compress") or {}),
    ]
    return ", ".join(parts)


def compression_names(compress: dict[str, Any]) -> list[str]:
    """What a section `compress` does, in short: ['0.5 pruned e5', 'static']; [] where nothing is compressed.

    e is the number of epochs of fine-tuning, 3xe5 where it follows each of three steps.
    """
    names = []
    if fraction := compress.get("fraction"):
        aligned = f" to {compress['align']}s" if compress.get("align", 1) != 1 else ""
        epochs, steps = compress.get("finetune_epochs"), compress.get("steps", 1)
        times = f"{steps}x" if epochs and steps != 1 else ""
        names.append(f"{fraction:g} pruned{aligned} {times}e{epochs}")
    if (kind := compress.get("quantise", "none")) != "none":
        names.append(str(kind))
    return names


def data_name(data: dict[str, Any]) -> str:
    """Name of what a network is fed: '7ch' for chips of seven channels, 'cifar10' for a published set."""
    return data.get("dataset") or f"{len(data['channels'])}ch"
