"""A design is a chain of stages: train -> [prune -> finetune] -> export -> [quantise] -> cost.

A stage takes an artifact and gives an artifact. Its identity is the hash of its parent's identity, its name and its
section of the configuration. Chains that begin alike share the identities of their first stages, and what is kept under
an identity serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dxc.config.identity import canonical, digest
from dxc.config.plan import Plan

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from dxc.training.crossval import TrainedFold

TRAIN, PRUNE, FINETUNE = "train", "prune", "finetune"
TRAIN_GROUPS = (
    "model",
    "task",
    "data",
    "source",
    "optimizer",
    "scheduler",
    "trainer",
    "base_digest",
    "score",
    "seed",
)
"""What a trained network depends on, beside the chips themselves."""
FRACTION_DIGITS = 6  # of a step: 0.3 in three steps begins as 0.1
FINETUNING_KEYS = ("finetune_epochs", "finetune_lr")


@dataclass(frozen=True)
class Artifact:
    """What a design is so far: each stage adds to what it was given, or replaces it."""

    folds: Sequence[TrainedFold] = ()
    predictions: pd.DataFrame | None = None
    """See Result.predictions."""
    network: torch.nn.Module | None = None
    """The network that is exported: that of the fold with the best score."""
    fold: str = ""
    """The name of that fold."""
    onnx: Path | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """All that is known so far, named as in dxc.metrics."""
    tags: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Stage:
    """One step of a chain.

    section: what its result depends on, beside its parent's; of a canonical configuration. work: takes the artifact of
    the stage before and the folder where results of this identity are kept; returns its own artifact, and has recorded
    it.
    """

    name: str
    section: Mapping[str, Any]
    work: Callable[[Artifact, Path], Artifact]


def identity(name: str, section: Mapping[str, Any], parent: str = "") -> str:
    """12 hexadecimal digits that tell a stage's result from all others.

    Args:
        name: of the stage.
        section: what its result depends on.
        parent: identity of the stage before; '' of the first.
    """
    return digest([parent, name, section])


def identities(stages: Sequence[Stage]) -> list[str]:
    """The identity of each stage of a chain, in its order."""
    found: list[str] = []
    for stage in stages:
        found.append(identity(stage.name, stage.section, found[-1] if found else ""))
    return found


def tags(stages: Sequence[Stage]) -> dict[str, str]:
    """What a run says of its chain: 'train:ID export:ID cost:ID', and the identity of the uncompressed network."""
    named = list(zip((stage.name for stage in stages), identities(stages), strict=True))
    return {"dxc.base": named[0][1], "dxc.stages": " ".join(f"{name}:{each}" for name, each in named)}


def network_sections(described: Mapping[str, Any], chips: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and section of the stages that give a network its weights, in their order.

    The fraction of a pruning is of the channels that the network had at first. So networks that are pruned in steps
    share those that are alike: half in two steps begins as a quarter in one.

    Args:
        described: a canonical configuration, of a plan as it was requested (dxc.config.identity.canonical).
        chips: hash of the chips (tag dxc.data).
    """
    trained = {group: described[group] for group in TRAIN_GROUPS if group in described}
    sections = [(TRAIN, {**trained, "chips": chips})]
    compress = described.get("compress", {})
    if not compress.get("fraction"):
        return sections
    steps = compress.get("steps", 1)
    for step in range(1, steps + 1):
        fraction = compress["fraction"]
        if step < steps:
            fraction = round(fraction * step / steps, FRACTION_DIGITS)
        sections.append((PRUNE, {"fraction": fraction, "align": compress["align"]}))
        if compress["finetune_epochs"]:
            sections.append((FINETUNE, _of(compress, FINETUNING_KEYS)))
    return sections


def network_identities(plan: Plan, chips: str, *, epochs: int | None = None) -> list[tuple[str, str]]:
    """Name and identity of each stage that gives a network its weights, in their order.

    Args:
        plan: as it was requested.
        chips: hash of the chips.
        epochs: of a search's rung, which trains fewer of them than the plan says.
    """
    if epochs is not None:
        plan = plan.with_trainer(max_epochs=epochs)
    sections = network_sections(canonical(plan.values()), chips)
    stages = [Stage(name, section, lambda artifact, kept: artifact) for name, section in sections]
    return list(zip((name for name, _ in sections), identities(stages), strict=True))


def train_identity(plan: Plan, chips: str, *, epochs: int | None = None) -> str:
    """The identity of a plan's train stage; see network_identities."""
    return network_identities(plan, chips, epochs=epochs)[0][1]


def _of(section: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: section[key] for key in keys if key in section}
